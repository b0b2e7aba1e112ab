"""Replays recorded policy cases: `python -m cloison.policy.cases`.

One JSON object `{"group": ..., "system": ...}` a line on standard input, one line `{"load": ..., "results": [...]}` back.
Not part of any decision: this is how other implementations are compared with ours.
"""
from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from typing import Any

from cloison.policy.evaluate import Allow, Ask, Decision, Deny, Request, choose, evaluate, respond
from cloison.policy.facts import Facts, facts_from_system_info
from cloison.policy.memory import MappingReader
from cloison.policy.parse import PolicySyntaxError, Root, parse
from cloison.policy.rules import Rule


def replay(group: Mapping[str, Any], system: object) -> dict[str, Any]:
    """One group of cases. The form of what comes back is that of the recorded data."""
    facts = facts_from_system_info(system)
    try:
        rules = parse(_reader(group))
    except PolicySyntaxError as error:
        return {"load": {"error": error.kind, "file": error.file, "line": error.line}, "results": []}
    results = [_result(facts, evaluate(rules, facts, _request(case["q"]))) for case in group["cases"]]
    return {"load": "ok", "results": results}


def _reader(group: Mapping[str, Any]) -> MappingReader:
    keys = {Root.MAIN: "files", Root.RUNTIME: "runtime_files", Root.LEGACY: "legacy_files"}
    return MappingReader({
        root: {path: _bytes(text) for path, text in group.get(key, {}).items()} for root, key in keys.items()
    })


def _bytes(text: str | Mapping[str, str]) -> bytes:
    return text.encode() if isinstance(text, str) else base64.b64decode(text["b64"], validate=True)


def _request(query: Mapping[str, str]) -> Request:
    return Request(query["service"], query["argument"], query["source"], query["target"], query.get("requested_source", ""))


def _result(facts: Facts, decision: Decision) -> dict[str, Any]:
    if isinstance(decision, Deny):
        return {"a": "deny", "why": decision.why, "notify": decision.notify, "rule": _place(decision.rule)}
    common = {"user": decision.user, "autostart": decision.autostart, "notify": decision.notify,
              "rule": _place(decision.rule), "req": decision.call.target.text}
    if isinstance(decision, Allow):
        return {"a": "allow", "target": decision.target, "response": _response(facts, decision), **common}
    targets = sorted(decision.targets)
    choices = {target: _response(facts, choose(decision, target)) for target in _samples(decision, targets)}
    return {"a": "ask", "targets": targets, "default": decision.default, "choices": choices, **common}


def _samples(ask: Ask, targets: list[str]) -> list[str]:
    """The choices whose outcome is recorded: first, last and default."""
    return sorted({targets[0], targets[-1], ask.default or targets[0]})


def _response(facts: Facts, decision: Allow | Deny) -> str | dict[str, str]:
    response = decision if isinstance(decision, Deny) else respond(facts, decision)
    return {"denied": response.why} if isinstance(response, Deny) else str(response)


def _place(rule: Rule | None) -> str | None:
    return None if rule is None else rule.place


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(replay(order["group"], order["system"])), flush=True)


if __name__ == "__main__":
    main()

"""Replays the recorded Admin API calls of Qubes OS 4.4.0, in order, against a qubesd with the recorded starting system."""
from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from cloison.daemon.app import App
from cloison.daemon.fake import Answer, ask, fake_app

DATA = json.loads((Path(__file__).parent / "data" / "admin-api-replies.json").read_text())

START = (
    ("admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black"),
    *(("admin.vm.feature.Set", "tpl", name, value) for name, value in (
        ("qrexec", "1"), ("os", "Linux"), ("gui", "1"), ("vmexec", "1"), ("supported-rpc.qubes.WaitForRunningSystem", "1"),
        ("supported-rpc.qubes.WaitForSession", "1"))),
    ("admin.property.Set", "dom0", "default_template", "tpl"),
    ("admin.vm.Create.AppVM", "dom0", "", "name=sys-net label=red"),
    ("admin.vm.property.Set", "sys-net", "netvm", ""),
    ("admin.vm.property.Set", "sys-net", "provides_network", "True"),
    ("admin.property.Set", "dom0", "default_netvm", "sys-net"),
    ("admin.vm.Create.AppVM", "dom0", "tpl", "name=work label=blue"),
    ("admin.vm.Create.AppVM", "dom0", "", "name=dvm label=red"),
    ("admin.vm.property.Set", "dvm", "template_for_dispvms", "True"),
    ("admin.property.Set", "dom0", "default_dispvm", "dvm"),
    ("admin.vm.Create.DispVM", "dom0", "dvm", "name=named-disp label=red"),
    ("admin.vm.Create.StandaloneVM", "dom0", "", "name=alone label=green"),
    ("admin.vm.Create.RemoteVM", "dom0", "", "name=rem label=gray"),
    ("admin.vm.tag.Set", "work", "mytag", ""),
)

# Call number -> (payload sent instead, why).
PAYLOADS = {235: ("a" * 513, "the record cuts long payloads; the call was about the limit of 512 characters")}
# What differs from run to run, or by our storage driver. Applied to both sides.
MASKS = (
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
    (r"(?m)^path=.*$", "path=PATH"),
    (r"(?m)^usage=.*$", "usage=N"),
    (r"(?m)^dispid default=False type=int .*$", "dispid default=False type=int N"),
    (r"10\.138\.[0-9XY.]+", "10.138.X.Y"),
    (r"mem=\w+ mem_static_max=\w+ cputime=\w+", "mem=M mem_static_max=M cputime=C"),
)


def mask(text: str) -> str:
    for pattern, replacement in MASKS:
        text = re.sub(pattern, replacement, text)
    return text


async def recorded_system(root: str) -> App:
    app = await fake_app(root)
    for method, dest, argument, payload in START:
        answer = await ask(app, method, dest, argument, payload)
        assert not answer.failure, (method, dest, argument, answer)
    return app


def difference(recorded: dict[str, str], answer: Answer) -> str:
    """Empty if the answer is of the same kind, class and text."""
    if recorded["kind"] == "dropped":
        return "" if answer.failure else f"wanted a proper error, got {answer.content!r}"
    if recorded["kind"] == "exc":
        return "" if answer.failure == recorded["body"] else f"wanted {recorded['body']}, got {answer.failure or 'ok'}"
    if answer.failure:
        return f"wanted ok, got {answer.failure}: {answer.content}"
    wanted, got = mask(recorded["body"]), mask(answer.content)
    if wanted == got:
        return ""
    differing = [(a, b) for a, b in zip(wanted.split("\n"), got.split("\n"), strict=False) if a != b]
    return f"{differing[:4] or (wanted, got)}"


async def replay(root: str) -> list[str]:
    app = await recorded_system(root)
    found = []
    for number, recorded in enumerate(DATA["calls"]):
        call, _, dest = recorded["call"].partition(" -> ")
        method, _, argument = call.partition("+")
        payload = PAYLOADS.get(number, (recorded["payload"],))[0]
        problem = difference(recorded, await ask(app, method, dest, argument, payload))
        if problem:
            found.append(f"{number} {recorded['call']} {recorded['payload'][:40]!r}: {problem}")
    app.parts.store.close()
    return found


def test_all_recorded_calls_get_the_recorded_reply(tmp_path: Path) -> None:
    found = asyncio.run(replay(str(tmp_path)))
    assert len(DATA["calls"]) == 262
    assert not found, "\n" + "\n".join(found)


def test_lesson_17_no_reply_holds_a_traceback_or_a_path(tmp_path: Path) -> None:
    """QSB-099: whatever is asked, an error is one sentence and tells nothing of this host."""

    async def run() -> list[Answer]:
        app = await recorded_system(str(tmp_path))
        methods = ["admin.vm.property.Get", "admin.vm.volume.Info", "admin.pool.Info", "admin.vm.feature.Get", "admin.nope"]
        answers = [await ask(app, method, "work", "../../etc/passwd", payload) for method in methods for payload in ("", "x")]
        app.parts.store.close()
        return answers

    for answer in asyncio.run(run()):
        assert answer.failure
        assert "Traceback" not in answer.content
        assert str(tmp_path) not in answer.content
        assert "\n" not in answer.content


@pytest.mark.parametrize("number", sorted(PAYLOADS))
def test_each_replaced_payload_has_a_reason(number: int) -> None:
    payload, why = PAYLOADS[number]
    assert payload.startswith(DATA["calls"][number]["payload"])
    assert why

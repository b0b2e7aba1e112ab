"""The recorded cases of the reference: every decision, every load error with its place, and the door to replay more."""
from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloison.policy.cases import replay

DATA = json.loads(gzip.decompress((Path(__file__).parents[1] / "conformance/data/policy-cases.json.gz").read_bytes()))
CRASH = "crash:"


@pytest.mark.parametrize("group", DATA["groups"], ids=lambda group: f"{group['id']}-{group['kind']}")
def test_agrees_with_the_reference(group: dict[str, Any]) -> None:
    answer = replay(group, DATA["systems"][group["system"]])
    if group["load"] == "ok" or not group["load"]["error"].startswith(CRASH):
        assert answer["load"] == group["load"]
    else:
        assert answer["load"] != "ok"
    assert len(answer["results"]) == len(group["cases"])
    for case, result in zip(group["cases"], answer["results"], strict=True):
        assert_agrees(case, result)


def assert_agrees(case: dict[str, Any], result: dict[str, Any]) -> None:
    """Equal in every key; where the reference crashed, ours denies."""
    expected = case["r"]
    if expected["a"] == "crash":
        assert result["a"] == "deny", case
        return
    choices = expected.get("choices", {})
    for target, response in choices.items():
        if isinstance(response, dict) and response["denied"].startswith(CRASH):
            assert list(result["choices"][target]) == ["denied"], case
            result["choices"][target] = response
    assert result == expected, case


def test_the_door_answers_a_line_for_a_line() -> None:
    groups = [group for group in DATA["groups"] if group["kind"] in ("args", "bad", "compat")][:12]
    lines = [json.dumps({"group": group, "system": DATA["systems"][group["system"]]}) for group in groups]
    run = subprocess.run(
        [sys.executable, "-m", "cloison.policy.cases"], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert [answer["load"] for answer in answers] == [group["load"] for group in groups]
    assert [len(answer["results"]) for answer in answers] == [len(group["cases"]) for group in groups]


def test_a_text_that_is_no_utf_8_is_read_from_base64() -> None:
    answer = replay({"files": {"a.policy": {"b64": "/w=="}}, "cases": []}, DATA["systems"]["s0"])
    assert answer == {"load": {"error": "encoding", "file": None, "line": None}, "results": []}

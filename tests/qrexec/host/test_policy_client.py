"""What an answer of the policy means, line by line; who is asked; and that everything but a whole allow denies."""
from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.errors import PeerError
from cloison.qrexec.host.policy_client import MAX_ANSWER, Denied, Verdict, ask, parse_answer
from cloison.wire.policy import Query

LINES = {"user": "user", "result": "allow", "target": "vault", "autostart": "False", "requested_target": "@default"}
VERDICT = Verdict("user", "vault", False, "@default")
QUERY = Query("work", "@default", "qubes.Filecopy+", "")


def text(lines: dict[str, str]) -> bytes:
    return "\n".join(f"{key}={value}" for key, value in lines.items()).encode()


def without(key: str) -> dict[str, str]:
    return {name: value for name, value in LINES.items() if name != key}


@pytest.mark.parametrize(("lines", "verdict"), [
    (LINES, VERDICT),
    ({**LINES, "autostart": "True"}, VERDICT._replace(autostart=True)),
    ({**LINES, "target": "@dispvm:dvm", "target_uuid": "@dispvm:uuid:x"},
     VERDICT._replace(target="@dispvm:dvm", target_uuid="@dispvm:uuid:x")),
    ({**LINES, "service": "a+b", "policy_source": "remote"}, VERDICT._replace(service="a+b", policy_source="remote")),
    ({**LINES, "more": "than is known"}, VERDICT),
    (dict(reversed(LINES.items())), VERDICT),
])
def test_an_allowed_call(lines: dict[str, str], verdict: Verdict) -> None:
    assert parse_answer(text(lines)) == verdict
    assert parse_answer(text(lines) + b"\n") == verdict


@pytest.mark.parametrize("answer", [b"result=deny", b"result=deny\n", b"result=deny\nsecret=rule"])
def test_a_denied_call(answer: bytes) -> None:
    with pytest.raises(Denied, match="denied by policy"):
        parse_answer(answer)


@pytest.mark.parametrize("answer", [
    b"", b"\n", b"\0", text(LINES) + b"\n\0", b"\xff=x\n" + text(LINES), b"result", b"result=allow", text(LINES) + b"\n\n",
    text(LINES) + b"\nuser=root", text(LINES) + b"\nmore=1\nmore", text(LINES) + b"\nresult=deny", b"result=deny\nresult=allow",
    *(text(without(key)) for key in LINES),
    *(text({"result": "deny", key: LINES[key]}) for key in LINES if key != "result"),
    text({**LINES, "result": "deny"}), text({**LINES, "result": "Allow"}), text({**LINES, "result": ""}),
    *(text({**LINES, "autostart": value}) for value in ("", "true", "1", "0", "yes", "None")),
    text(LINES) + b"\nmore=" + bytes(b"x" * MAX_ANSWER),
])
def test_what_is_neither_is_no_permission(answer: bytes) -> None:
    """A denial that names a target is none, either: whoever answers so is not understood."""
    with pytest.raises(PeerError):
        parse_answer(answer)


def test_the_longest_answer() -> None:
    room = MAX_ANSWER - len(text(LINES) + b"\nmore=")
    assert parse_answer(text(LINES) + b"\nmore=" + b"x" * room) == VERDICT
    with pytest.raises(PeerError, match="too long"):
        parse_answer(text(LINES) + b"\nmore=" + b"x" * (room + 1))


def program(folder: Path, script: str) -> str:
    path = folder / "policy-program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def asked(path: Path, found: str | None, answer: bytes | None) -> Verdict:
    """A daemon there that answers so, None for none."""
    async def run() -> Verdict:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\n\n")
            writer.write(answer or b"")
            writer.close()

        async with asyncio.timeout(PATIENCE):
            if answer is None:
                return await ask(str(path), found, QUERY)
            async with await asyncio.start_unix_server(serve, str(path)):
                return await ask(str(path), found, QUERY)

    return asyncio.run(run())


ALLOWS = f"printf '{text(LINES).decode()}'"


@pytest.mark.parametrize(("answer", "script", "why"), [
    (None, None, "can't be asked"), (b"", None, "can't be asked"), (b"x" * 10000, None, "can't be asked"),
    (None, "exit 1", "program failed"), (None, f"{ALLOWS} >&0; exit 1", "program failed"),
    (None, f"{ALLOWS} >&0; exit 2", "program failed"),
    (None, "true", "program failed"), (None, "printf result=deny >&0", "denied by policy"),
    (b"result=deny", f"{ALLOWS} >&0", "denied by policy"), (b"", "exit 3", "program failed"),
])
def test_every_way_to_no_verdict_denies(tmp_path: Path, answer: bytes | None, script: str | None, why: str) -> None:
    with pytest.raises(Denied, match=why):
        asked(tmp_path / "policy.sock", None if script is None else program(tmp_path, script), answer)


@pytest.mark.parametrize("answer", [None, b"", b"result=maybe"])
def test_the_program_is_asked_where_no_daemon_answers(tmp_path: Path, answer: bytes | None) -> None:
    words: Callable[[], str] = (tmp_path / "words").read_text
    script = program(tmp_path, f'echo "$@" > {tmp_path}/words\n{ALLOWS} >&0')
    assert asked(tmp_path / "policy.sock", script, answer) == VERDICT
    assert words() == "-- work @default qubes.Filecopy+\n"


def test_a_program_that_is_missing_denies(tmp_path: Path) -> None:
    with pytest.raises(Denied, match="program failed"):
        asked(tmp_path / "policy.sock", str(tmp_path / "nothing"), None)


def test_a_daemon_that_answers_is_believed(tmp_path: Path) -> None:
    assert asked(tmp_path / "policy.sock", program(tmp_path, "exit 1"), text(LINES)) == VERDICT

"""Whose time qubes.GetDate says: the clock qube's, if there is one that runs and answers well; else the host's own."""
from __future__ import annotations

from types import SimpleNamespace

import pytest

from cloison.client.connection import Connection
from cloison.errors import CloisonError
from cloison.qrexec.host.services import clock
from cloison.wire import clock as wire

NOW = 1_800_000_000_123_456_789


class Clock:
    """`name`: what the property says. `answer`: what a qube says when asked; an exception is raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str | None, *, running: bool, answer: bytes | Exception) -> None:
        self._answer = answer
        self.asked: list[tuple[str, str]] = []
        monkeypatch.setattr(clock, "get_property", lambda _to, _qube, prop: SimpleNamespace(value={"clockvm": name}[prop]))
        monkeypatch.setattr(clock, "list_qubes", lambda _to, qube: {qube: SimpleNamespace(running=running)})
        monkeypatch.setattr(clock, "ask", self._ask)

    def _ask(self, _connection: Connection, qube: str, service: str, most: int, _seconds: float) -> bytes:
        self.asked.append((qube, service))
        assert most == wire.LENGTH_MAX
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(("arguments", "nanoseconds"), [(["qubes.GetDate"], False), (["qubes.GetDate", "nanoseconds"], True)])
def test_the_clock_qubes_time_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], arguments: list[str], nanoseconds: bool,
) -> None:
    asked = Clock(monkeypatch, "sys-net", running=True, answer=wire.encode(NOW, nanoseconds=True)).asked
    assert clock.main(arguments) == 0
    assert capfdbinary.readouterr().out == wire.encode(NOW, nanoseconds=nanoseconds)
    assert asked == [("sys-net", "qubes.GetDate+nanoseconds")]


@pytest.mark.parametrize(("name", "running", "answer", "asked"), [
    ("", True, b"", 0), (None, True, b"", 0), ("dom0", True, wire.encode(NOW, nanoseconds=True), 0),
    ("sys-net", False, wire.encode(NOW, nanoseconds=True), 0),
    ("sys-net", True, b"", 1), ("sys-net", True, b"1970-01-01T00:00:00+00:00\n", 1),
    ("sys-net", True, CloisonError("it says no"), 1),
])
def test_else_the_hosts_own(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], name: str | None, running: bool,
    answer: bytes | Exception, asked: int,
) -> None:
    monkeypatch.setattr(clock.time, "time_ns", lambda: NOW + 5)
    seen = Clock(monkeypatch, name, running=running, answer=answer).asked
    assert clock.main(["qubes.GetDate", "nanoseconds"]) == 0
    told = capfdbinary.readouterr()
    assert told.out == wire.encode(NOW + 5, nanoseconds=True)
    assert len(seen) == asked and (b"the host's own time is used" in told.err) == bool(asked)

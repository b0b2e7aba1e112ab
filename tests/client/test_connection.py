"""Calls to qubesd: replies, failures and streams, over real sockets."""
from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd, listening
from tests.patience import PATIENCE

from cloison import errors
from cloison.client import events
from cloison.client.connection import Connection, NoDaemon, ServerError, Stream
from cloison.client.disposables import Disposable
from cloison.client.domains import features, get_properties, list_qubes, parse_properties
from cloison.errors import CloisonError, PeerError
from cloison.runtime.paths import Paths
from cloison.wire import admin


def test_a_call_and_its_reply(qubesd: FakeQubesd) -> None:
    assert Connection().call("work", "admin.vm.feature.Set", "a.b", b"1") == b""
    assert qubesd.calls == [("work", "admin.vm.feature.Set", "a.b", b"1")]
    assert features(Connection(), "work") == {"a.b": "1"}


FAILURES = [
    ("QubesVMNotFoundError", errors.QubeNotFound),
    ("QubesVMShutdownTimeoutError", errors.ShutdownTimeout),
    ("ProtocolError", errors.BadRequest),
    ("PermissionDenied", errors.NotPermitted),
    ("QubesException", CloisonError),
    ("SomethingNew", ServerError),
]


@pytest.mark.parametrize(("name", "kind"), FAILURES)
def test_an_exception_becomes_the_class_of_its_name(qubesd: FakeQubesd, name: str, kind: type[CloisonError]) -> None:
    qubesd.answers["admin.vm.Start"] = lambda _, __: admin.exception(name, "100% of %s is lost")
    with pytest.raises(CloisonError) as caught:
        Connection().call("work", "admin.vm.Start")
    assert type(caught.value) is kind
    assert str(caught.value) == "100% of %s is lost"


@pytest.mark.parametrize("name", [name for name, _ in FAILURES])
def test_the_hint_of_an_exception_is_the_failure_s(qubesd: FakeQubesd, name: str) -> None:
    qubesd.answers["admin.vm.Start"] = lambda _, __: admin.exception(name, "lost", "Do this: 100% of it.")
    with pytest.raises(CloisonError) as caught:
        Connection().call("work", "admin.vm.Start")
    assert str(caught.value) == "lost" and caught.value.hint == "Do this: 100% of it."
    with Connection().stream("work", "admin.vm.Start") as stream, pytest.raises(CloisonError) as streamed:
        list(stream)
    assert streamed.value.hint == caught.value.hint
    assert not CloisonError.hint and errors.ShutdownTimeout("x").hint == "qvm-kill ends it at once."


def test_without_qubesd_the_error_says_how_to_start_it(root: Path) -> None:
    with pytest.raises(NoDaemon) as caught:
        Connection().call("dom0", "admin.vm.List")
    assert "cloison up" in caught.value.hint


@pytest.mark.parametrize("reply", [b"", b"0", b"3\0", b"2\0Class", b"\xff"])
def test_what_is_no_reply_is_an_error(qubesd: FakeQubesd, reply: bytes) -> None:
    qubesd.answers["admin.vm.Start"] = lambda _, __: reply
    with pytest.raises((NoDaemon, PeerError)):
        Connection().call("work", "admin.vm.Start")


@pytest.mark.parametrize("word", ["a b", "a\0b", "a\nb", "\x1b[0m", "é"])
def test_a_hostile_word_is_refused_before_anything_is_sent(qubesd: FakeQubesd, word: str) -> None:
    for dest, argument in ((word, ""), ("work", word)):
        with pytest.raises(CloisonError, match="can't be part of a call"):
            Connection().call(dest, "admin.vm.feature.Get", argument)
    assert qubesd.calls == []


def test_results_of_many_calls_come_in_order(qubesd: FakeQubesd) -> None:
    names = ["work", "nowhere", "sys-net"] * 30
    results = list(Connection().gather((name, "admin.vm.List", "") for name in names))
    assert [isinstance(result, bytes) for result in results] == [True, False, True] * 30
    assert str(results[1]) == "no qube nowhere"


def test_a_socket_below_a_long_path(tmp_path: Path) -> None:
    run = tmp_path / ("x" * 100) / "run"
    run.mkdir(parents=True)

    def serve(sock: socket.socket) -> None:
        while sock.recv(1000):
            pass
        sock.sendall(admin.ok(b"far"))
        sock.close()

    short = tmp_path / "s"
    with listening(short, serve):
        (run / "qubesd.sock").symlink_to(short)
        assert Connection(Paths(str(run), "", "")).call("dom0", "m") == b"far"


def test_the_listing_and_properties(qubesd: FakeQubesd) -> None:
    assert list(list_qubes(Connection())) == ["dom0", "debian-12", "work", "sys-net"]
    properties = get_properties(Connection(), "work")
    assert properties["label"].value == "blue"
    assert properties["qid"].text is None


def test_escapes_in_property_values() -> None:
    properties = parse_properties(b"a default=True type=str x\\ny\\\\nz\x0b\x0c\nb default=False type=bool True\n")
    assert properties["a"].value == "x\ny\\nz\x0b\x0c"
    assert properties["a"].default and not properties["b"].default
    with pytest.raises(PeerError):
        parse_properties(b"a nonsense\n")


def test_events_come_as_they_happen_and_end(qubesd: FakeQubesd) -> None:
    qubesd.answers["admin.Events"] = lambda _, __: (
        admin.event("", "connection-established") + admin.event("work", "domain-start", [("start_guid", "True")])
        + admin.exception("QubesVMNotFoundError", "gone"))
    with events.subscribe(Connection()) as stream:
        received = iter(stream)
        assert next(received) == admin.Event("work", "domain-start", (("start_guid", "True"),))
        with pytest.raises(errors.QubeNotFound):
            next(received)


def test_events_until_a_deadline() -> None:
    ours, theirs = socket.socketpair()
    with Stream(ours) as stream, theirs:
        assert list(stream.until(time.monotonic())) == []
        theirs.sendall(admin.event("work", "domain-start") + admin.event("work", "domain-shutdown"))
        assert next(iter(stream)).event == "domain-start"
        assert [event.event for event in stream.until(0.0)] == ["domain-shutdown"]      # it is here already
        theirs.close()
        assert list(stream.until(time.monotonic() + 60)) == []


@pytest.mark.parametrize(("method", "times"), [("admin.vm.List", 1), ("admin.vm.Start", 0)])
def test_a_slow_answer_is_told_of_once_and_of_a_long_call_later(
    qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch, method: str, times: int,
) -> None:
    monkeypatch.setattr("cloison.client.connection.SLOW", 0.0)
    told: list[tuple[str, str]] = []
    waits = threading.Event()

    def slow(*call: str) -> None:
        told.append((call[0], call[1]))
        waits.set()

    def answer(_fake: FakeQubesd, _request: admin.Request) -> bytes:
        assert not times or waits.wait(PATIENCE)
        return admin.ok(b"so")

    qubesd.answers[method] = answer
    connection = Connection(slow=slow)
    assert [connection.call("work", method) for _ in range(2)] == [b"so"] * 2
    assert told == [("admin.vm.List", "work")] * times
    assert Connection().call("work", method) == b"so", "who doesn't want to be told waits all the same"


def test_a_disposable_lives_as_long_as_its_lease(qubesd: FakeQubesd) -> None:
    with Disposable(Connection()) as disposable:
        assert disposable.name == "disp1"
        assert not qubesd.ended_leases.is_set()
    assert qubesd.ended_leases.wait(PATIENCE)


def test_a_disposable_of_another_qubesd_is_killed(qubesd: FakeQubesd) -> None:
    qubesd.qubes["disp1"] = {"class": "DispVM", "state": "Halted", "label": "red"}
    qubesd.answers["admin.vm.CreateDisposable"] = lambda _, __: admin.ok(b"disp1")
    with Disposable(Connection(), "work") as disposable:
        assert qubesd.qubes[disposable.name]["state"] == "Running"
    assert [(dest, method) for dest, method, _, _ in qubesd.calls] == [
        ("work", "cloison.Disposable"), ("work", "admin.vm.CreateDisposable"),
        ("disp1", "admin.vm.Start"), ("disp1", "admin.vm.Kill")]


def reset(sock: socket.socket) -> None:
    """Hang up on what was sent and not read."""
    sock.recv(1)
    sock.close()


def test_a_connection_that_is_reset_is_no_daemon(root: Path) -> None:
    """Whatever is done on it: no error of the system's comes out of the library."""
    (root / "run").mkdir()
    with listening(root / "run" / "qubesd.sock", reset):
        for _ in range(5):
            with pytest.raises(NoDaemon):
                Connection().call("dom0", "admin.vm.List", payload=bytes(60000))
            with pytest.raises(NoDaemon):
                events.subscribe(Connection())
            with pytest.raises(NoDaemon):
                Disposable(Connection())

"""What host and agent tell each other: orders survive the trip, and a hostile report is a word of the list or PeerError."""
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.errors import PeerError
from cloison.wire import agent
from cloison.wire.mux import MAX_BODY

WHO = agent.Identity(
    xid=7, time=1_700_000_000_000_000_000, entropy="ab" * 64, machine_id="0" * 32, boot_id="00000000-0000-4000-8000-000000000000",
    qubesdb={"/name": "work", "/qubes-vm-type": "AppVM"}, private_size=2 << 30, private_blank=False)


def test_identity_survives_the_trip() -> None:
    do, fields = agent.parse_order(agent.become(WHO))
    assert do == "become" and agent.identity(fields) == WHO


def test_a_large_identity_fits_a_frame() -> None:
    entries = {f"/qubes-service/{number:040d}": "1" for number in range(300)}
    assert len(agent.become(WHO._replace(qubesdb=entries))) < MAX_BODY


@pytest.mark.parametrize(("order", "do"), [
    (agent.seal(), "seal"), (agent.ping(), "ping"), (agent.shutdown(), "shutdown"), (agent.clock(5), "time"),
])
def test_orders(order: bytes, do: str) -> None:
    assert json.loads(order)["do"] == do
    assert agent.parse_order(order) == (do, {"time": 5} if do == "time" else {})


@pytest.mark.parametrize("word", ["sealed", "running", "failed", "halting", "pong"])
def test_reports_survive_the_trip(word: str) -> None:
    assert agent.parse_report(agent.report(word)) == agent.Report(word, "")
    assert agent.parse_report(agent.report(word, "no such disk")) == agent.Report(word, "no such disk")


def test_report_is_cut_to_what_the_host_takes() -> None:
    assert len(agent.parse_report(agent.report("failed", "x" * 5000)).text) == agent.MAX_TEXT - len("failed ")


def test_text_that_could_drive_a_terminal_is_replaced() -> None:
    assert agent.parse_report(b"failed \x1b[31m\xff\n~").text == "_[31m__~"


@pytest.mark.parametrize("untrusted", [
    b"", b" ", b"Running", b"running\n", b"runningx", b"run", b"\0", b"become {}", b"running\0",
])
def test_unknown_word(untrusted: bytes) -> None:
    with pytest.raises(PeerError):
        agent.parse_report(untrusted)


@pytest.mark.parametrize(("length", "taken"), [(agent.MAX_TEXT, True), (agent.MAX_TEXT + 1, False), (MAX_BODY, False)])
def test_length_of_a_report(length: int, taken: bool) -> None:
    untrusted = b"failed ".ljust(length, b"x")
    if taken:
        assert agent.parse_report(untrusted).word == "failed"
    else:
        with pytest.raises(PeerError):
            agent.parse_report(untrusted)


@given(st.binary(max_size=1100))
def test_any_bytes_are_a_report_or_a_peer_error(untrusted: bytes) -> None:
    try:
        report = agent.parse_report(untrusted)
    except PeerError:
        return
    assert report.word.encode() in agent.WORDS and report.text.isprintable()


def test_a_qubesdb_of_any_size_becomes() -> None:
    """A qube with many features starts: what has no room follows over QubesDB's own channel."""
    own = {f"/vm-config/{number}": '"' * 3071 for number in range(40)}
    chosen = agent.at_once({**own, "/name": "work", "/qubes-vm-type": "AppVM"})
    assert list(chosen)[:2] == ["/name", "/qubes-vm-type"] and 2 < len(chosen) < 42
    who = agent.Identity(65535, 1 << 63, "f" * 128, "f" * 32, "f" * 36, chosen, 1 << 50, True)
    assert len(agent.become(who)) <= MAX_BODY
    assert agent.at_once({"/name": "work"}) == {"/name": "work"}

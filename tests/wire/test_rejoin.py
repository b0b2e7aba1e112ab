"""A new agent and the host find each other in a stream that was left anywhere."""
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloison.wire.rejoin import ANNOUNCE, CONFIRM, NONCE, AgentSide, HostSide

FIRST, SECOND = b"1" * NONCE, b"2" * NONCE


def fed(side: HostSide | AgentSide, data: bytes, cut: int) -> bytes:
    """All that it answers to these bytes in pieces of that size."""
    return b"".join(side.feed(data[at:at + cut]) for at in range(0, len(data), cut))


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(1, 60))
def test_they_meet_whatever_was_left_before_and_however_it_is_cut(to_host: bytes, to_agent: bytes, cut: int) -> None:
    host, agent = HostSide(), AgentSide(FIRST)
    assert fed(host, to_host + agent.announcement, cut) == FIRST
    last = fed(agent, to_agent, cut)
    assert last == b""
    last = fed(agent, FIRST, cut)
    assert last == CONFIRM + FIRST and not host.done
    assert fed(host, last, cut) == b"" and host.done


def test_the_last_announcement_counts() -> None:
    host = HostSide()
    assert host.feed(ANNOUNCE + FIRST) == FIRST
    assert host.feed(ANNOUNCE + FIRST) == b""            # said again: the answer is on its way
    assert host.feed(CONFIRM + SECOND) == b"" and not host.done
    assert host.feed(ANNOUNCE + SECOND) == SECOND
    assert host.feed(CONFIRM + FIRST) == b"" and not host.done
    assert host.feed(CONFIRM + SECOND) == b"" and host.done


@given(st.lists(st.sampled_from([ANNOUNCE, CONFIRM, FIRST, SECOND, b"\0", ANNOUNCE[:20], b"x" * 5000]), max_size=30))
def test_any_bytes_of_a_guest_are_bounded(pieces: list[bytes]) -> None:
    host = HostSide()
    for piece in pieces:
        assert len(host.feed(piece)) <= NONCE
        assert len(host._untrusted) <= len(ANNOUNCE) + NONCE


def test_only_the_nonce_ends_the_agents_search() -> None:
    agent = AgentSide(FIRST)
    assert fed(agent, ANNOUNCE + CONFIRM + SECOND + b"\0" * 100 + FIRST[:-1], 7) == b""
    assert agent.feed(FIRST[-1:]) == CONFIRM + FIRST

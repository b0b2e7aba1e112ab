"""Bytes that wait: in order, cheap however small the pieces, and bounded in one account that ends who holds the most."""
from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.runtime.held import BLOCK, UNBOUNDED, Backlog, Held, Share

PIECES = st.lists(st.binary(max_size=300) | st.integers(BLOCK - 1, BLOCK + 1).map(bytes), max_size=30)


@given(PIECES, st.lists(st.integers(0, BLOCK), max_size=40), st.binary(max_size=20))
def test_what_goes_in_comes_out_in_order(pieces: list[bytes], steps: list[int], greeting: bytes) -> None:
    backlog, out = Backlog(), b""
    for piece in pieces:
        backlog.put(piece)
    assert len(backlog) == sum(map(len, pieces))
    for step in steps:
        some = bytes(backlog.first())[:step]
        assert some or not step or not len(backlog)
        out += some
        backlog.left(len(some))
    rest = b"".join(pieces)[len(out):]
    backlog.put_first(greeting)
    assert len(backlog) == len(greeting) + len(rest)
    assert out + greeting + rest == out + backlog.take() and len(backlog) == 0
    assert b"".join(pieces).startswith(out)


def test_pieces_of_one_byte_cost_what_they_are() -> None:
    backlog, byte = Backlog(), b"x"
    tracemalloc.start()
    try:
        for _ in range(1 << 18):
            backlog.put(byte)
        assert tracemalloc.get_traced_memory()[0] < (1 << 18) * 1.25
    finally:
        tracemalloc.stop()


def test_draining_a_byte_at_a_time_moves_nothing_else() -> None:
    """Blocks stay where they are: what is left of the first one is the same memory."""
    backlog = Backlog()
    backlog.put(b"ab" * BLOCK)
    whole = backlog.first().obj
    for _ in range(100):
        backlog.left(1)
    assert backlog.first().obj is whole and len(backlog.first()) == 2 * BLOCK - 100


def test_nothing_has_no_first_and_may_leave() -> None:
    backlog = Backlog()
    backlog.put(b"")
    backlog.put_first(b"")
    backlog.left(0)
    assert not len(backlog) and not len(backlog.first()) and backlog.take() == b""


class Holder:
    """Holds what it says, until it is ended."""

    def __init__(self, held: Held) -> None:
        self.ended = 0
        self.share: Share = held.share(self._end)

    def _end(self) -> None:
        self.ended += 1
        self.share.now(0)


def test_the_bound_itself_is_allowed_and_one_more_ends_the_largest() -> None:
    told: list[int] = []
    held = Held(100, told.append)
    small, large, other = Holder(held), Holder(held), Holder(held)
    small.share.now(10)
    large.share.now(60)
    other.share.now(30)
    assert held.total == 100 and not told
    small.share.now(11)
    assert (small.ended, large.ended, other.ended) == (0, 1, 0) and told == [60] and held.total == 41
    other.share.now(200)
    assert other.ended == 1 and small.ended == 0 and held.total == 11, "whoever adds may be the one"


def test_what_has_left_makes_room() -> None:
    held = Held(100)
    one, two = Holder(held), Holder(held)
    for _ in range(5):
        one.share.now(100)
        one.share.now(0)
        two.share.now(100)
        two.share.now(0)
    assert held.total == 0 and not one.ended and not two.ended


@pytest.mark.parametrize(("count", "read"), [(0, 64), (49, 64), (50, 4), (100, 4)])
def test_less_is_taken_in_when_half_is_used(count: int, read: int) -> None:
    held = Held(100)
    Holder(held).share.now(count)
    assert held.roomy(64, 4) == read


def test_a_process_without_a_bound_counts_nothing() -> None:
    holder = Holder(UNBOUNDED)
    holder.share.now(1 << 40)
    assert not holder.ended and UNBOUNDED.total == 0 and UNBOUNDED.roomy(64, 4) == 64

"""Bytes that wait in this process for whoever is to take them: joined as they come, and counted in one account.

A channel's credit bounds what one channel may leave here. An account bounds all channels of a qube together, since a guest has
hundreds: when it is full, whoever holds the most is ended, so that one flood doesn't cost a small call its life. Pieces are
joined, since a piece of one byte costs Python a hundred times its size (docs/decisions/0044).
"""
from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

BLOCK: Final = 8192                      # bytes up to which small pieces are joined


class Backlog:
    """Bytes in order. It takes little more memory than what it holds, and draining it takes time in proportion to that."""

    __slots__ = ("_blocks", "_size", "_start")

    def __init__(self) -> None:
        self._blocks: deque[bytearray] = deque()
        self._start = 0                  # of what is left of the first block
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Behind all that waits."""
        if not data:
            return
        if self._blocks and len(self._blocks[-1]) + len(data) <= BLOCK:
            self._blocks[-1] += data
        else:
            self._blocks.append(bytearray(data))
        self._size += len(data)

    def put_first(self, data: bytes) -> None:
        """Before all that waits."""
        if data:
            if self._start:
                del self._blocks[0][:self._start]
                self._start = 0
            self._blocks.appendleft(bytearray(data))
            self._size += len(data)

    def first(self) -> memoryview:
        """Some of what is to leave next: empty only if nothing waits. Let go of it before anything else is called."""
        return memoryview(self._blocks[0])[self._start:] if self._blocks else memoryview(b"")

    def left(self, count: int) -> None:
        """So many bytes, of `first` at most, have left."""
        if not count:
            return
        self._size -= count
        self._start += count
        if self._start == len(self._blocks[0]):
            self._blocks.popleft()
            self._start = 0

    def take(self) -> bytes:
        """All of it; nothing waits any more."""
        data = b"".join(self._blocks)[self._start:]
        self.clear()
        return data

    def clear(self) -> None:
        self._blocks.clear()
        self._size = self._start = 0


class Held:
    """The account. `most`: bytes of all shares together, None for no bound. `on_full` is called when a share is ended for it."""

    def __init__(self, most: int | None, on_full: Callable[[int], None] = lambda _count: None) -> None:
        self.most, self._on_full = most, on_full
        self.total = 0
        self._shares: set[Share] = set()

    def share(self, end: Callable[[], None]) -> Share:
        """Of one holder. `end` is called when it must let go of everything: it holds the most, and all hold too much."""
        return Share(self, end)

    def roomy(self, much: int, few: int) -> int:
        """`much` while less than half of the account is used, else `few`: how much to take in at once."""
        return much if self.most is None or self.total * 2 < self.most else few

    def change(self, share: Share, count: int) -> None:
        """Only for `Share`."""
        if self.most is None:
            share.count = count
            return
        self.total += count - share.count
        share.count = count
        if count:
            self._shares.add(share)
        else:
            self._shares.discard(share)
        while self.total > self.most:
            largest = max(self._shares, key=lambda each: each.count)
            self._on_full(largest.count)
            self.total -= largest.count
            largest.count = 0
            self._shares.discard(largest)
            largest.end()


class Share:
    """What one holder has of it."""

    __slots__ = ("_held", "count", "end")

    def __init__(self, held: Held, end: Callable[[], None]) -> None:
        self._held, self.end = held, end
        self.count = 0

    def now(self, count: int) -> None:
        """It holds so many bytes from now on. May end any holder, this one too, before it returns."""
        if count != self.count:
            self._held.change(self, count)


UNBOUNDED: Final = Held(None)            # of processes that hold nothing of a guest's for others

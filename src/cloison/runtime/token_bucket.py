"""A token bucket: so many at once, then so many a second. It has no clock of its own: the caller says what time it is.

It is kept as one number, the time at which it is full again (the generic cell rate algorithm).
"""
from __future__ import annotations


class TokenBucket:
    """`burst` tokens at most, `rate` new ones a second. Times are seconds of one monotonic clock."""

    def __init__(self, burst: int, rate: float) -> None:
        self._interval = 1 / rate
        self._depth = burst / rate
        self._full_at = float("-inf")

    def full_in(self, now: float) -> float:
        """Seconds, 0 if it is."""
        return max(0.0, self._full_at - now)

    def wait(self, now: float) -> float:
        """Seconds until there is a token, 0 if there is one."""
        return max(0.0, self.full_in(now) + self._interval - self._depth)

    def spend(self, now: float, count: int = 1) -> None:
        """Take so many tokens, or owe them."""
        self._full_at = now + self.full_in(now) + count * self._interval

    def take(self, now: float) -> bool:
        """Take a token; False, and nothing owed, if there is none."""
        if self.wait(now) > 0:
            return False
        self.spend(now)
        return True

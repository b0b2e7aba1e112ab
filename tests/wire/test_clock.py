"""The time from another qube."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.errors import PeerError
from cloison.wire import clock

NOW = 1_795_240_800 * 10**9


def test_both_forms() -> None:
    assert clock.parse(b"2026-11-21T06:00:00+00:00\n") == NOW
    assert clock.parse(b"2026-11-21T06:00:00,123456789+00:00\n") == NOW + 123456789
    assert clock.encode(NOW, nanoseconds=False) == b"2026-11-21T06:00:00+00:00\n"
    assert clock.encode(NOW + 5, nanoseconds=True) == b"2026-11-21T06:00:00,000000005+00:00\n"


@pytest.mark.parametrize("untrusted", [
    b"", b"\n", b"2026-11-21T06:00:00+00:00", b"2026-11-21T06:00:00+00:00\n\n", b"2026-11-21T06:00:00+01:00\n",
    b"2026-11-21 06:00:00+00:00\n", b"2026-13-21T06:00:00+00:00\n", b"2026-02-30T06:00:00+00:00\n", b"2026-11-21T24:00:00+00:00\n",
    b"2026-11-21T06:00:60+00:00\n", b"2024-12-31T23:59:59+00:00\n", b"1970-01-01T00:00:00+00:00\n", b"x" * 26, b"\xff" * 26,
    b"2026-11-21T06:00:00.123456789+00:00\n", b"2026-11-21T06:00:00,12345678x+00:00\n", b"2026-11-21T06:00:00;reboot now\n",
    b"\xd9\xa2026-11-21T06:00:00+00:0\n", b"2" * 37])
def test_what_is_no_time(untrusted: bytes) -> None:
    with pytest.raises(PeerError):
        clock.parse(untrusted)


@given(st.binary(min_size=26, max_size=36))
def test_total_over_any_bytes(untrusted: bytes) -> None:
    with pytest.raises(PeerError):
        clock.parse(untrusted)


@given(st.integers(NOW, 4 * NOW), st.booleans())
def test_what_is_said_is_understood(now: int, nanoseconds: bool) -> None:
    assert clock.parse(clock.encode(now, nanoseconds=nanoseconds)) == (now if nanoseconds else now // 10**9 * 10**9)

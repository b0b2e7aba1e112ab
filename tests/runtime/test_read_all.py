"""A whole stream, or a reason why not: its end, its bound, its time."""
from __future__ import annotations

import os

import pytest

from cloison.errors import PeerError
from cloison.runtime.read_all import read_all


@pytest.mark.parametrize(("sent", "limit", "got"), [
    (b"", 0, b""), (b"", 5, b""), (b"abcde", 5, b"abcde"), (b"abcdef", 5, b"abcdef"), (b"abcdefg", 5, b"abcdef"),
    (bytes(60000), 1 << 20, bytes(60000)),
])
def test_what_comes_until_the_end_and_one_byte_more_than_may(sent: bytes, limit: int, got: bytes) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, sent)
        os.close(writer)
        assert read_all(reader, limit, 30.0) == got
    finally:
        os.close(reader)


def test_a_writer_that_neither_ends_nor_writes_is_given_up() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"half")
        with pytest.raises(PeerError, match="within 0 s"):
            read_all(reader, 100, 0.0)
    finally:
        os.close(reader)
        os.close(writer)

"""qubes.VMExec's encoding (reference: words joined by `+`): what every encoder makes, and all that none makes."""
from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.qrexec.vmexec import decode

PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._"


def encode(words: list[bytes]) -> str:
    def one(byte: int) -> str:
        return chr(byte) if byte in PLAIN else "--" if byte == 0x2D else f"-{byte:02X}"
    return "+".join("".join(map(one, word)) for word in words)


@pytest.mark.parametrize(("argument", "words"), [
    ("ls", [b"ls"]), ("ls+----help", [b"ls", b"--help"]), ("a+---61", [b"a", b"-a"]), ("echo+", [b"echo", b""]),
    ("echo+++x", [b"echo", b"", b"", b"x"]), ("a-20b", [b"a b"]), ("a-2Bb", [b"a+b"]), ("-C3-A9", ["é".encode()]),
    ("-FF-0A", [b"\xff\n"]),
    ("-2Fbin-2Fsh+--c", [b"/bin/sh", b"-c"]),
])
def test_decode(argument: str, words: list[bytes]) -> None:
    assert decode(argument) == words


def test_own_encoder() -> None:
    assert encode([b"ls", b"--help", b"", "é +".encode()]) == "ls+----help++-C3-A9-20-2B"


@pytest.mark.parametrize("argument", [
    "", "+", "+a", "-", "a-", "a-2", "a-2f", "a-2g", "a b", "a/b", "a\n", "é", "---", "a-00b", "a+-00", "a$", "a-+b", "a\0",
])
def test_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=r"qubes\.VMExec"):
        decode(argument)


WORDS = st.lists(st.binary(max_size=12).filter(lambda word: b"\0" not in word), min_size=1, max_size=5)


@given(WORDS.filter(lambda words: bool(words[0])))
def test_every_command_survives(words: list[bytes]) -> None:
    assert decode(encode(words)) == words


@given(st.text(st.sampled_from("ab+-0A2F é\0"), max_size=12))
def test_any_text_is_words_or_value_error(argument: str) -> None:
    try:
        assert decode(argument)
    except ValueError:
        return


@pytest.mark.parametrize(("argv", "status", "output"), [
    (["echo+a-20b"], 0, "a b\n"), (["sh+--c+exit-207"], 7, ""), (["no.such.program"], 127, ""), (["-"], 1, ""), ([], 1, ""),
    (["a", "b"], 1, ""),
])
def test_as_a_program(argv: list[str], status: int, output: str) -> None:
    program = "from cloison.qrexec.vmexec import main; main()"
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, output)
    assert bool(done.stderr) == (status in (1, 127))

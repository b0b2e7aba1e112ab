"""The fault hook, in processes of its own: it reads its order once, at import."""
from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
from cloison.runtime import faults
for name in ("one", "two"):
    try:
        faults.point(name)
        print(name)
    except OSError as error:
        print(name, error.errno)
"""


@pytest.mark.parametrize(("fault", "output", "status"), [
    ("", "one\ntwo\n", 0), ("three", "one\ntwo\n", 0), ("tw", "one\ntwo\n", 0), ("one=else", "one\ntwo\n", 0),
    ("two", "one\n", -signal.SIGKILL), ("one=enospc", "one 28\ntwo\n", 0), ("two=eio", "one\ntwo 5\n", 0),
])
def test_point(fault: str, output: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-u", "-c", PROGRAM], env={**os.environ, "CLOISON_FAULT": fault},
                          capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == (output, status)

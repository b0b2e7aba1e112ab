"""What each daemon of a session begins with, and what ends it: seen by a process of its own."""
from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.patience import PATIENCE

PROGRAM = """
import asyncio, os, resource
from cloison.runtime import daemon
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

paths = daemon.begin()

async def main():
    end = daemon.told_to_end()
    umask = os.umask(0)
    print(os.getcwd(), oct(umask), resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.path.isdir(paths.qubes), flush=True)
    await end.wait()
    print("ends", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_leaves_its_folder_keeps_to_itself_may_open_much_and_ends_when_told_to(tmp_path: Path, number: signal.Signals) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env={**os.environ, "CLOISON_ROOT": str(tmp_path)}, stdout=subprocess.PIPE, cwd=tmp_path,
        umask=0,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == [b"/", b"0o77", str(most).encode(), b"True"]
        process.send_signal(number)
        assert process.stdout.read() == b"ends\n"
        assert process.wait(PATIENCE) == 0


def test_what_it_says_goes_to_the_file_that_is_its_standard_error(tmp_path: Path) -> None:
    """As records of a log that has its bound; not to wherever the name leads later."""
    log = tmp_path / "daemon.log"
    program = "from cloison.runtime import daemon; daemon.begin(); import logging; logging.getLogger('here').warning('said \\x1b')"
    with open(log, "ab") as errors:
        subprocess.run([sys.executable, "-c", program], env={**os.environ, "CLOISON_ROOT": str(tmp_path)}, check=True,
                       stderr=errors, timeout=PATIENCE)
    assert log.read_text() == "WARNING here: said \\x1b\n"

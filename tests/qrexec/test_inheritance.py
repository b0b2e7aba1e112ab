"""What programs inherit: their session's limits, whatever this process has; and none of its shelter."""
from __future__ import annotations

import os
import pwd
import resource
import subprocess
import sys

import pytest

from cloison.qrexec import inheritance, process
from cloison.qrexec.inheritance import Session
from cloison.wire.qrexec import Command

USER = pwd.getpwuid(os.getuid()).pw_name
SHELL_LIMITS = "ulimit -Sn; ulimit -Sc; ulimit -St"


def said(command: str, session: Session) -> list[str]:
    """Lines that a program of that session puts out."""
    started = process.start(Command(USER, command=command), session=session)
    assert isinstance(started, process.Started)
    with started.stdout.makefile("rb") as output:
        lines: list[str] = output.read().decode().split()
    started.process.wait()
    started.close()
    return lines


def test_limits_are_the_programs_and_not_ours() -> None:
    before = [resource.getrlimit(which) for which in range(resource.RLIMIT_NPROC, resource.RLIMIT_NPROC + 3)]
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, core = resource.getrlimit(resource.RLIMIT_CORE)
    limits = ((resource.RLIMIT_NOFILE, 100, files), (resource.RLIMIT_CORE, 0, core))
    assert said("read _ </dev/null; " + SHELL_LIMITS, Session(limits=limits))[:2] == ["100", "0"]
    assert before == [resource.getrlimit(which) for which in range(resource.RLIMIT_NPROC, resource.RLIMIT_NPROC + 3)]


def test_a_time_limit_never_holds_for_the_agent() -> None:
    """It may have used more of its own already, and would be killed."""
    own = resource.getrlimit(resource.RLIMIT_CPU)
    with inheritance.of(Session(limits=((resource.RLIMIT_CPU, 1, own[1]),))):
        assert resource.getrlimit(resource.RLIMIT_CPU) == own
    sleeper = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    inheritance.limit_time(sleeper.pid, Session(limits=((resource.RLIMIT_CPU, 7, own[1]),)))
    assert resource.prlimit(sleeper.pid, resource.RLIMIT_CPU)[0] == 7
    sleeper.communicate(b"")
    inheritance.limit_time(sleeper.pid, Session(limits=((resource.RLIMIT_CPU, 7, own[1]),)))       # gone: nothing to limit


def test_limits_that_can_not_be_set_start_nothing() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(process.CannotStart) as caught:
        process.start(Command(USER, command="true"), session=Session(limits=((resource.RLIMIT_NOFILE, 100, 1 << 40),)))
    assert caught.value.status == 125 and resource.getrlimit(resource.RLIMIT_NOFILE) == before


# A process with a score of its own and more descriptors open than its programs may have. Only root may have a lower score than 0.
SHELTERED = """
import os, resource, sys
sys.path.insert(0, sys.argv[1])
from cloison.qrexec import inheritance, process
from cloison.qrexec.inheritance import Session
from cloison.wire.qrexec import Command
inheritance.shelter(300)
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
limits = ((resource.RLIMIT_NOFILE, 50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),)
for _ in range(3):
    started = process.start(Command("", command="ulimit -n; cat /proc/self/oom_score_adj"), session=Session(limits=limits))
    print(started.stdout.makefile().read().split(), open("/proc/self/oom_score_adj").read().strip())
    started.process.wait()
    started.close()
"""


def test_programs_have_no_shelter_and_their_limit_stands_above_many_descriptors() -> None:
    source = os.path.dirname(os.path.dirname(os.path.dirname(inheritance.__file__)))
    done = subprocess.run([sys.executable, "-ISBc", SHELTERED, source], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("['50', '0'] 300\n" * 3, "")

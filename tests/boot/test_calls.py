"""Calls out of real qubes: to the host, to another qube, to a disposable; two hundred at once."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.boot.place import DVM, LIMIT, Place, kill

pytestmark = pytest.mark.boot

POLICY = """\
test.Echo * caller dom0 allow
qubes.VMShell * caller target allow
qubes.VMShell * caller @dispvm allow
admin.vm.List * caller dom0 allow
"""
ECHO = '#!/bin/sh\necho "$QREXEC_REMOTE_DOMAIN $1"\nexec cat\n'

# One small program asks for them all: two hundred interpreters in an emulated guest would measure the guest.
MANY = r"""
import array, select, socket, struct
CALLS = 200
def ask():
    agent = socket.socket(socket.AF_UNIX)
    agent.connect("/var/run/qubes/qrexec-agent")
    body = struct.pack("<64s64s32s", b"", b"dom0", b"SOCKET") + b"test.Echo+\0"
    agent.sendall(struct.pack("<II", 0x213, len(body)) + body)
    return agent
def converse(number, agent):
    _, ancillary, _, _ = agent.recvmsg(8, socket.CMSG_SPACE(4))
    data = socket.socket(fileno=array.array("i", ancillary[0][2])[0])
    text = b"%d" % number
    data.sendall(struct.pack("<III", 0x300, 4, 4) + struct.pack("<II", 0x190, len(text)) + text + struct.pack("<II", 0x190, 0))
    return data
agents = [ask() for _ in range(CALLS)]
streams = [converse(*pair) for pair in enumerate(agents)]      # all are under way before one ends
good = 0
for number, stream in enumerate(streams):
    got = b""
    while more := stream.recv(65536):
        got += more
    good += got.endswith(struct.pack("<IIi", 0x193, 4, 0)) and b"%d" % number in got
print(good)
"""


@pytest.fixture
def caller(cloison: Place) -> Iterator[Place]:
    """Qubes `caller`, which runs, and `target`, which does not."""
    policy = Path(cloison.paths.config, "policy.d", "10-calls.policy")
    service = Path(cloison.paths.config, "qubes-rpc", "test.Echo")
    for path, text in ((policy, POLICY), (service, ECHO)):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    service.chmod(0o755)
    for name in ("caller", "target"):
        cloison.create(name)
    cloison.ok(["qvm-prefs", "caller", "default_dispvm", DVM])
    for most in ("call-programs-max", "call-programs-each-max"):     # the usual ones are few (decision 46)
        cloison.ok(["qvm-features", "caller", most, "200"])
    cloison.ok(["qvm-start", "caller"])
    yield cloison
    cloison.remove("caller", "target")
    policy.unlink()
    service.unlink()


def await_only(place: Place, names: set[str]) -> None:
    """Until there are these qubes and no other: a disposable is gone when its call is, a moment later."""
    with place.events() as watch:
        watch.until(lambda: set(place.qubes()) == names)


def test_host_other_qube_and_disposable(caller: Place) -> None:
    before = set(caller.qubes())
    assert caller.sh("caller", "echo in | qrexec-client-vm dom0 test.Echo+arg") == b"caller arg\nin\n"
    refused = caller.run(["qvm-run", "-p", "caller", "qrexec-client-vm dom0 test.Other </dev/null"])
    assert (refused.returncode, refused.stdout) == (126, b"")
    for _ in range(2):                       # halted, then running
        answer = caller.run(["qvm-run", "-p", "caller", "echo 'hostname; exit 5' | qrexec-client-vm target qubes.VMShell"])
        assert (answer.returncode, answer.stdout) == (5, b"target\n")
    answer = caller.run(["qvm-run", "-p", "caller", "echo 'hostname; exit 6' | qrexec-client-vm @dispvm qubes.VMShell"])
    assert answer.returncode == 6 and answer.stdout.startswith(b"disp")
    await_only(caller, before)
    listed = caller.sh("caller", "qrexec-client-vm dom0 admin.vm.List </dev/null")
    assert listed.startswith(b"0\0")


def test_a_killed_warden_takes_the_disposable_of_its_call_along(caller: Place) -> None:
    before = set(caller.qubes())
    call = caller.popen(["qvm-run", "-p", "caller", "(echo 'echo up; cat'; cat) | qrexec-client-vm @dispvm qubes.VMShell"])
    assert call.stdout is not None
    assert call.stdout.readline() == b"up\n"
    kill(caller.process("warden", "caller"))
    call.communicate(timeout=LIMIT)
    await_only(caller, before)


def test_two_hundred_at_once(caller: Place) -> None:
    assert caller.sh("caller", "python3 -I -S -", MANY.encode()) == b"200\n"


# As many programs as calls: more than fit into the memory of a qube of the usual size, so that it swaps.
PROGRAMS = """
import subprocess
pipe = subprocess.PIPE
calls = [subprocess.Popen(["qrexec-client-vm", "dom0", "test.Echo"], stdin=pipe, stdout=pipe) for _ in range(200)]
said = [call.communicate(b"%d" % number)[0] for number, call in enumerate(calls)]
good = [call.returncode == 0 and text.endswith(b"\\n%d" % number) for number, (call, text) in enumerate(zip(calls, said))]
print(sum(good))
"""


@pytest.mark.slow
def test_two_hundred_programs_at_once(caller: Place) -> None:
    assert caller.sh("caller", "python3 -I -S -", PROGRAMS.encode()) == b"200\n"

"""A guest whose root has replaced the agent and says what it likes to its warden: it harms itself and nobody else."""
from __future__ import annotations

import re
import select
from pathlib import Path

import pytest
from tests.boot.place import BOOT_LIMIT, LIMIT, Place

pytestmark = [pytest.mark.boot, pytest.mark.slow]

MAX_WARDEN = 64 << 10       # KiB of resident memory at its peak

# Run as a unit of its own, so that it outlives the agent that started it. Frames: reference wire/mux.py.
ATTACK = r"""
import os, select, struct, subprocess, sys
subprocess.run(['systemctl', 'stop', 'cloison-standby', 'cloison-agent'], check=True)
port = os.open('/dev/virtio-ports/org.cloison.mux', os.O_RDWR)

def frame(kind, channel, body=b'', length=None):
    return struct.pack('<BBHI', kind, 0, len(body) if length is None else length, channel) + body

def send(data):
    while data:
        data = data[os.write(port, data[:32768]):]

CONTROL, OPEN, DATA, CREDIT, CLOSE = range(1, 6)
attack = sys.argv[1]
if attack == 'garbage':
    send(os.urandom(1 << 20))
elif attack == 'oversized':
    send(frame(DATA, 2, b'x' * 100, 65535) + bytes(1 << 20))
elif attack == 'unknown-channel':
    send(frame(DATA, 4242, b'x'))
elif attack == 'credit':
    send(frame(CREDIT, 2, struct.pack('<I', 0xffffffff)))
elif attack == 'channels':
    for number in range(10000):
        send(frame(OPEN, 2 * number + 100001, struct.pack('<III', 0, 1, 513 + number % 200)))
elif attack == 'qrexec':
    send(frame(DATA, 2, struct.pack('<II', 0x200, 0xffffffff) + os.urandom(4096)))
elif attack == 'qubesdb':
    send(frame(DATA, 4, os.urandom(30000)))
elif attack == 'control':
    for _ in range(3000):
        send(frame(CONTROL, 0, b'pong') * 3000)
    send(frame(CONTROL, 0, b'\xff' * 30000))
elif attack == 'unread':
    number = 100001
    for _ in range(3000):
        batch = b''
        for _ in range(1000):
            batch += frame(OPEN, number, struct.pack('<III', 0, 1, 600)) + frame(CLOSE, number)
            number += 2
        send(batch)
    send(frame(99, 0))
"""
ATTACKS = ("garbage", "oversized", "unknown-channel", "credit", "channels", "qrexec", "qubesdb", "control", "unread")


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_guest_that_breaks_the_protocol_loses_its_channels_only(cloison: Place, attack: str) -> None:
    for name in ("hostile", "bystander"):
        if name not in cloison.qubes():
            cloison.create(name)
        cloison.ok(["qvm-start", name])
    warden = cloison.process("warden hostile")
    with cloison.popen(["qvm-run", "-p", "bystander", "exec cat"]) as bystander, \
            cloison.popen(["qvm-run", "-p", "hostile", "echo up; exec sleep 1000"]) as call:
        assert call.stdout is not None and bystander.stdin is not None and bystander.stdout is not None
        assert call.stdout.readline() == b"up\n"
        cloison.sh("hostile", "cat > /run/attack.py", ATTACK.encode(), user="root")
        cloison.sh("hostile", f"systemd-run --quiet python3 /run/attack.py {attack}", user="root")
        assert call.wait(BOOT_LIMIT) != 0                         # ends when the warden has given the guest's channels up
        bystander.stdin.write(b"still here\n")
        bystander.stdin.flush()
        assert select.select([bystander.stdout], [], [], LIMIT)[0]
        assert bystander.stdout.readline() == b"still here\n"
        output, _ = bystander.communicate(b"the end", LIMIT)
        assert (output, bystander.returncode) == (b"the end", 0)
    result = cloison.run(["qvm-run", "-p", "hostile", "true"])
    assert result.returncode == 255
    assert result.stderr and len(result.stderr.splitlines()) <= 2 and b"Traceback" not in result.stderr
    assert cloison.state("hostile") == "Running"
    assert peak(warden) < MAX_WARDEN
    cloison.kill("hostile")
    assert cloison.state("hostile") == "Halted"
    assert cloison.sh("bystander", "echo answers") == b"answers\n"


def test_a_guest_without_an_agent_can_be_shut_down_and_killed(cloison: Place) -> None:
    if "silent" not in cloison.qubes():
        cloison.create("silent")
    cloison.ok(["qvm-start", "silent"])
    stop = cloison.popen(["qvm-run", "-p", "--user", "root", "silent", "echo going; systemctl stop cloison-standby cloison-agent"])
    with stop:
        assert stop.stdout is not None
        assert stop.stdout.readline() == b"going\n"
        cloison.kill("silent")
        assert stop.wait(LIMIT) != 0
    assert cloison.state("silent") == "Halted"


def peak(pid: int) -> int:
    """Most resident memory a process ever had, in KiB."""
    match = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1])

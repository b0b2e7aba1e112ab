"""Calls of the Admin API that only a real guest can answer: its console, its QubesDB, a disposable made ahead."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.boot.place import DVM, LIMIT, Place

from cloison.qrexec.host import host_service

pytestmark = pytest.mark.boot
CONSOLE = Path(host_service.SHIPPED) / "admin.vm.Console"
ASK = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(b"qubes.FeaturesRequest+ %s name dom0\\0" % sys.argv[2].encode())
sock.shutdown(socket.SHUT_WR)
assert sock.recv(100) == b"0\\0"
"""


def test_a_login_on_the_console_for_one_caller_at_a_time(cloison: Place) -> None:
    """qubesd has the qube open one by cloison.Console."""
    cloison.create("seen")
    cloison.ok(["qvm-start", "seen"])
    environ = cloison.environment({"QREXEC_REMOTE_DOMAIN": "dom0", "QREXEC_REQUESTED_TARGET": "seen"})
    with subprocess.Popen([sys.executable, str(CONSOLE)], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as console:
        assert console.stdin is not None and console.stdout is not None
        _read_until(console.stdout.fileno(), b"# ")
        console.stdin.write(b"echo $((6*7)) at $(hostname)\n")
        console.stdin.flush()
        _read_until(console.stdout.fileno(), b"42 at seen")
        second = subprocess.run([sys.executable, str(CONSOLE)], env=environ, stdin=subprocess.DEVNULL, check=False)
        assert second.returncode == 200
        console.stdin.close()
        assert console.wait(LIMIT) == 0
    cloison.kill("seen")
    cloison.remove("seen")


def _read_until(fd: int, wanted: bytes) -> None:
    untrusted = b""
    while wanted not in untrusted:
        data = os.read(fd, 4096)
        assert data, f"the console ended after {untrusted!r}"
        untrusted += data


def test_what_a_qube_writes_to_its_qubesdb_reaches_qubesd(cloison: Place) -> None:
    cloison.create("told")
    cloison.ok(["qvm-start", "told"])
    with cloison.events() as watch:
        cloison.sh("told", "qubesdb-write /qubes-block-devices/sda/desc 'A_B (LBL)'; qubesdb-write /qubes-block-devices ''; "
                           "qubesdb-write /features-request/supported-rpc.x.Y 1", user="root")
        assert watch.event("device-added:block", "told").pairs == (("device", "told:sda::None"),)
    assert b"told:sda" in cloison.ok(["qvm-block", "ls"])
    misc = str(cloison.root / "run" / "qubesd.misc.sock")
    subprocess.run([sys.executable, "-c", ASK, misc, "told"], check=True)
    assert cloison.ok(["qvm-features", "told", "supported-rpc.x.Y"]) == b"1\n"
    cloison.kill("told")
    assert b"told:sda" not in cloison.ok(["qvm-block", "ls"])
    cloison.remove("told")


def test_a_preloaded_disposable_waits_paused_and_is_used(cloison: Place) -> None:
    with cloison.events() as watch:
        cloison.ok(["qvm-features", DVM, "preload-dispvm-max", "1"])
        name = watch.event("domain-paused").subject
        watch.event("domain-feature-set:preload-dispvm-completed", name)
    assert cloison.state(name) == "Paused"
    with cloison.events() as watch:
        cloison.ok(["qvm-features", "--unset", DVM, "preload-dispvm-max"])
        assert watch.event("domain-delete").pairs == (("vm", name),)
    assert name not in cloison.qubes()

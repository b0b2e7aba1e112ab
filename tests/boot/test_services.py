"""The services of a real qube, as the host and other qubes call them; those that need a window are not among them."""
from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.boot.place import LIMIT, TEMPLATE, Place

from cloison.wire import clock

pytestmark = pytest.mark.boot

LISTENER = """\
import socket
with socket.create_server(("127.0.0.1", {port})) as server:
    print("listens", flush=True)
    stream, _ = server.accept()
    stream.sendall(stream.recv(100).upper())
"""


def call(place: Place, service: str, data: bytes = b"", user: str = "user", qube: str = "work") -> bytes:
    """What the service answers; it must succeed."""
    return place.ok(["qvm-run", "-p", "--user", user, "--service", qube, service], data)


def listen(place: Place, port: int) -> subprocess.Popen[bytes]:
    """A server in `work` that answers one connection in capitals."""
    listener = place.popen(["qvm-run", "-p", "work", f"python3 -c '{LISTENER.format(port=port)}'"])
    assert listener.stdout is not None and listener.stdout.readline() == b"listens\n"
    return listener


def test_shells_and_commands(work: Place) -> None:
    assert call(work, "qubes.VMShell", b"id -un; exit 0\n") == call(work, "qubes.VMShell+WaitForSession", b"id -un\n") == b"user\n"
    assert call(work, "qubes.VMRootShell", b"id -un\n") == b"root\n"
    assert call(work, "qubes.VMExec+printf+-25s-7C+a-20b") == call(work, "qubes.VMExecGUI+printf+-25s-7C+a-20b") == b"a b|"
    assert call(work, "qubes.VMRootExec+id+--un") == b"root\n"


def test_time(work: Place) -> None:
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00\n", call(work, "qubes.GetDate"))
    assert clock.parse(call(work, "qubes.GetDate+nanoseconds"))
    assert call(work, "qubes.SetDateTime", b"2035-01-01T00:00:00+00:00\n", "root") == b""
    assert call(work, "qubes.GetDate").startswith(b"2035-01-01T00:0")
    work.sh("work", "qvm-sync-clock", user="root")
    assert not call(work, "qubes.GetDate").startswith(b"2035")
    assert b"qubes-sync-time.timer" in work.sh("work", "systemctl list-timers --all --no-legend")


def test_waiting_and_suspending(work: Place) -> None:
    for service in ("qubes.WaitForRunningSystem", "qubes.WaitForSession"):
        assert call(work, service) == b""
    work.sh("work", "for when in pre post; do mkdir -p /etc/qubes/suspend-$when.d; f=/etc/qubes/suspend-$when.d/99-t.sh; "
            "printf '#!/bin/sh\\necho %s >> /run/suspended\\n' $when > $f; chmod +x $f; done", user="root")
    for service in ("qubes.SuspendPreAll", "qubes.SuspendPre", "qubes.SuspendPost", "qubes.SuspendPostAll"):
        call(work, service, user="root")
    assert work.sh("work", "cat /run/suspended") == b"pre\npost\n"


def test_menus_and_log(work: Place) -> None:
    call(work, "qubes.GetAppmenus")
    assert call(work, "qubes.Log", b"<3>from a test\x1b[0m\n") == b"OK\nOK\n"
    assert b"from a test_[0m" in work.sh("work", "journalctl --no-pager", user="root")


def test_backup_comes_back(work: Place) -> None:
    call(work, "qubes.Backup", b"/home/user\nthe bytes of an archive")
    assert work.sh("work", "cat /home/user/qubes-backup-*") == b"the bytes of an archive"


def test_connect_tcp(work: Place) -> None:
    listener = listen(work, 4321)
    assert call(work, "qubes.ConnectTCP+4321", b"hello") == b"HELLO"
    assert listener.wait(LIMIT) == 0
    listener.communicate()


def test_a_template_reaches_the_updates_proxy_and_reports_to_the_host(work: Place) -> None:
    policy = Path(work.paths.config, "policy.d", "10-proxy.policy")
    policy.write_text(f"qubes.UpdatesProxy * {TEMPLATE} @default allow target=work\n")
    listener = listen(work, 8082)
    work.ok(["qvm-start", TEMPLATE])
    try:
        said = work.sh(TEMPLATE, "/usr/lib/qubes/apt-proxy; systemctl is-active qubes-updates-proxy-forwarder.socket; "
                                 "exec 3<>/dev/tcp/127.0.0.1/8082; printf hello >&3; head -c 5 <&3")
        assert said == b"http://127.0.0.1:8082\nactive\nHELLO"
        assert work.sh("work", "/usr/lib/qubes/apt-proxy") == b"DIRECT\n"
        work.sh(TEMPLATE, "echo 3 | qrexec-client-vm dom0 qubes.NotifyUpdates")
        work.sh(TEMPLATE, "qvm-features-request os=Linux os-version=12 --commit")
        assert work.ok(["qvm-features", TEMPLATE, "updates-available"]) == b"1\n"
        work.sh(TEMPLATE, "/usr/lib/qubes/upgrades-status-notify", user="root")
        call(work, "qubes.PostInstall", user="root", qube=TEMPLATE)
        assert work.ok(["qvm-features", TEMPLATE, "supported-rpc.qubes.WaitForSession"]) == b"1\n"
    finally:
        work.halt(TEMPLATE)
        listener.communicate(timeout=LIMIT)
        policy.unlink()

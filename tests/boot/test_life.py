"""The life of qubes as a person sees it through the tools: what stays, what goes, and what a call carries."""
from __future__ import annotations

import hashlib
import os
import signal

import pytest
from tests.boot.place import DVM, LIMIT, TEMPLATE, Place

pytestmark = pytest.mark.boot


def test_a_qube_keeps_its_home_and_forgets_its_root(cloison: Place) -> None:
    cloison.create("life")
    cloison.ok(["qvm-start", "life"])
    assert cloison.state("life") == "Running"
    cloison.sh("life", "echo mine > ~/kept")
    cloison.sh("life", "echo mine > /etc/forgotten; echo tool > /usr/local/bin/tool; chmod +x /usr/local/bin/tool", user="root")
    cloison.ok(["qvm-pause", "life"])
    assert cloison.state("life") == "Paused"
    cloison.ok(["qvm-unpause", "life"])
    assert cloison.sh("life", "cat ~/kept") == b"mine\n"
    cloison.halt("life")
    assert cloison.state("life") == "Halted"
    cloison.ok(["qvm-start", "life"])
    assert cloison.sh("life", "cat ~/kept; cat /usr/local/bin/tool; test ! -e /etc/forgotten && echo gone") == b"mine\ntool\ngone\n"
    cloison.kill("life")
    assert cloison.state("life") == "Halted"
    cloison.ok(["qvm-remove", "--force", "life"])
    assert "life" not in cloison.qubes()
    assert not [path for path in cloison.files() if "life" in path]


def test_bind_dirs_and_rc_local_work_from_the_private_volume(cloison: Place) -> None:
    cloison.create("binder")
    cloison.sh("binder", """
        mkdir -p /rw/config/qubes-bind-dirs.d
        echo "binds+=( '/etc/issue' '/var/spool' )" > /rw/config/qubes-bind-dirs.d/50_user.conf
        printf '#!/bin/sh\\necho ran > /run/rc-local-was-here\\n' > /rw/config/rc.local
        chmod +x /rw/config/rc.local""", user="root")
    cloison.halt("binder")
    cloison.sh("binder", "echo bound > /etc/issue; echo letter > /var/spool/letter", user="root")
    # rc.local runs beside everything else, so it is waited for.
    wait = "timeout 240 sh -c 'until test -e /run/rc-local-was-here; do sleep 0.1; done'; cat /run/rc-local-was-here"
    assert cloison.sh("binder", wait, user="root") == b"ran\n"
    cloison.halt("binder")
    assert cloison.sh("binder", "cat /etc/issue /var/spool/letter") == b"bound\nletter\n"
    cloison.remove("binder")


def test_a_disposable_forgets_everything(cloison: Place) -> None:
    cloison.create("named", "--class", "DispVM", "--template", DVM)
    cloison.sh("named", "echo x > ~/kept")
    cloison.sh("named", "echo x > /etc/kept; echo x > /usr/local/kept; test -e /etc/kept", user="root")
    cloison.halt("named")
    assert not [path for path in cloison.files() if "named" in path]
    assert cloison.sh("named", "ls -d /home/user/kept /etc/kept /usr/local/kept 2>/dev/null | wc -l") == b"0\n"
    cloison.remove("named")


def test_an_unnamed_disposable_leaves_nothing(cloison: Place) -> None:
    before = cloison.files()
    assert cloison.ok(["qvm-run", "-p", "--dispvm", "--", "hostname"]).startswith(b"disp")
    cloison.clear()
    assert cloison.files() == before


def test_a_template_change_is_seen_after_its_shutdown_at_the_next_start_only(cloison: Place) -> None:
    cloison.create("child")
    cloison.ok(["qvm-start", "child"])
    cloison.sh(TEMPLATE, "echo changed > /etc/changed-in-template", user="root")
    assert cloison.run(["qvm-run", "-p", "child", "test -e /etc/changed-in-template"]).returncode == 1
    cloison.halt(TEMPLATE)
    assert cloison.run(["qvm-run", "-p", "child", "test -e /etc/changed-in-template"]).returncode == 1
    cloison.halt("child")
    assert cloison.sh("child", "cat /etc/changed-in-template") == b"changed\n"
    cloison.remove("child")


def test_a_standalone_keeps_its_root(cloison: Place) -> None:
    cloison.ok(["qvm-create", "--standalone", "--template", TEMPLATE, "--label", "gray", "alone"])
    cloison.sh("alone", "echo own > /etc/own; echo mine > /home/user/mine", user="root")
    cloison.halt("alone")
    assert cloison.sh("alone", "cat /etc/own /home/user/mine") == b"own\nmine\n"
    assert cloison.run(["qvm-run", "-p", DVM, "test -e /etc/own"]).returncode == 1
    cloison.remove("alone")


# -- calls -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def running(cloison: Place) -> str:
    """A running qube; the fixture `cloison` ends it."""
    if "caller" not in cloison.qubes():
        cloison.create("caller")
    cloison.ok(["qvm-start", "caller"])
    return "caller"


def test_status_and_streams_come_back_as_they_are(cloison: Place, running: str) -> None:
    for status in (0, 1, 42, 255):
        assert cloison.run(["qvm-run", "-p", running, f"exit {status}"]).returncode == status
    result = cloison.run(["qvm-run", "-p", running, "cat; echo wrong >&2; exit 3"], b"in\0put\xff\n")
    assert (result.returncode, result.stdout, result.stderr) == (3, b"in\0put\xff\n", b"wrong\n")
    assert cloison.sh(running, "id -un") == b"user\n"
    assert cloison.sh(running, "id -un", user="root") == b"root\n"
    assert cloison.ok(["qvm-run", "-p", running, "printf", "%s|", "a b", "$HOME", "*", "ü"]) == "a b|$HOME|*|ü|".encode()
    assert cloison.run(["qvm-run", "-p", running, "no-such-program"]).returncode == 127
    assert cloison.run(["qvm-run", "-p", "--user", "nobody-of-that-name", running, "true"]).returncode == 125


def test_a_program_that_reads_nothing_does_not_hang_its_caller(cloison: Place, running: str) -> None:
    assert cloison.run(["qvm-run", "-p", running, "exit 7"], bytes(8 << 20)).returncode == 7
    closed = "exec >&-; sha256sum | head -c 64 >&2"
    data = os.urandom(1 << 20)
    assert cloison.run(["qvm-run", "-p", running, closed], data).stderr.decode() == hashlib.sha256(data).hexdigest()


def test_ten_megabytes_each_way_bit_for_bit(cloison: Place, running: str) -> None:
    data = os.urandom(10 << 20)
    assert cloison.sh(running, "cat", data) == data


@pytest.mark.parametrize("command", ["cat", "yes", "sleep 3600"])
def test_ctrl_c_ends_the_tool_and_the_program_in_the_qube(cloison: Place, running: str, command: str) -> None:
    with cloison.popen(["qvm-run", "-p", running, f"echo $$ > ~/leader; echo up; {command}; :"]) as tool:
        assert tool.stdout is not None
        assert tool.stdout.readline() == b"up\n"
        cloison.sh(running, "kill -0 -- -$(cat ~/leader)")          # its process group
        tool.send_signal(signal.SIGINT)
        tool.stdout.close()
        assert tool.wait(LIMIT) in (130, -signal.SIGINT)
    cloison.sh(running, "timeout 60 sh -c 'while kill -0 -- -$(cat ~/leader) 2>/dev/null; do :; done'")

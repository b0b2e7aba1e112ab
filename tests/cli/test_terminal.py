"""Whatever a reply holds, a tool that prints to a terminal can't be made to drive it (QSB-013b, QSB-087)."""
from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys

import pytest
from fake_qubesd import FakeQubesd

from cloison.wire import admin

HOSTILE = "a\x1b]0;title\x07\x9b31mb\u202ec\rd\x00"
_RUN = "import sys; from cloison.cli.{} import main; sys.exit(main())"

LINES = """
qvm-ls
qvm-ls --raw-data -O name,label,netvm,default_user
qvm-ls -O name,priv-pool,flags
qvm-prefs work
qvm-prefs work default_user
qvm-prefs --help-properties work
qubes-prefs
qvm-features work
qvm-features work text
qvm-service work
qvm-tags work
qvm-notes -p work
qvm-check --networked work
qvm-volume list work
qvm-volume info work:private
qvm-pool
qvm-pool info default
qvm-pool drivers
qvm-firewall work
qvm-firewall --raw work list
qvm-block list
qvm-block list --assignments
qvm-block info sys-net:sda
qvm-usb list
qvm-pci list --with-sbdf
qvm-device --list-device-classes
qvm-create --help-classes
qvm-start work
qvm-shutdown sys-net
qvm-remove --force work
qvm-run work true
qvm-clone work new
cloison status
"""


@pytest.fixture
def hostile(qubesd: FakeQubesd) -> FakeQubesd:
    """Every text that a reply can hold is hostile, be it a qube's or not."""
    text = HOSTILE.encode()
    qubesd.qubes["work"].update(default_user=HOSTILE, label=HOSTILE)
    qubesd.features["work"] = {"text": HOSTILE, "service.text": HOSTILE}
    qubesd.tags["work"] = [HOSTILE]
    failure = admin.exception("QubesException", f"no {HOSTILE}")
    device = b"sda:1:2::b000000 vendor='%s' product='%s' serial='%s' _sbdf='%s'\n" % ((text,) * 4)
    for method, reply in {
        "admin.vm.notes.Get": text,
        "admin.vm.volume.List": b"private\nroot\n", "admin.vm.volume.ListSnapshots": text + b"\n",
        "admin.vm.volume.Info": b"pool=%s\nvid=%s\nsize=1\nusage=0\nsource=%s\nrw=True\n" % ((text,) * 3),
        "admin.pool.List": b"default\n" + text + b"\n", "admin.pool.Info": b"driver=%s\ndir_path=%s\n" % (text, text),
        "admin.pool.ListDrivers": b"qcow2 %s\n" % text,
        "admin.vm.firewall.Get": b"action=accept dsthost=%s comment=%s\n" % (text, text),
        "admin.deviceclass.List": text + b"\n", "admin.vmclass.List": text + b"\n",
        "admin.property.GetAll": b"default_user default=True type=str %s\n" % text,
        "admin.vm.property.HelpAll": b"default_user %s\n" % text, "admin.vm.property.Help": text,
    }.items():
        qubesd.answers[method] = lambda _, __, reply=reply: admin.ok(reply)
    for devclass in ("block", "usb", "pci"):
        qubesd.answers[f"admin.vm.device.{devclass}.Available"] = lambda _, __: admin.ok(device)
        for verb in ("Attached", "Assigned"):
            line = b"sys-net+" + device.rstrip(b"\n") + b" mode='%s'\n" % text
            qubesd.answers[f"admin.vm.device.{devclass}.{verb}"] = lambda _, __, line=line: admin.ok(line)
    for method in ("admin.vm.Start", "admin.vm.Shutdown", "admin.vm.Remove", "admin.vm.Create.AppVM"):
        qubesd.answers[method] = lambda _, __: failure
    qubesd.answers["internal.cloison.Status"] = lambda _, __: admin.ok(b'{"starts": {"%s": 1}}' % text.replace(b"\0", b"\x7f"))
    return qubesd


def shown(line: str) -> bytes:
    """All that a tool writes to its terminal."""
    words = shlex.split(line)
    master, slave = os.openpty()
    module = "main" if words[0] == "cloison" else words[0].replace("-", "_")
    with subprocess.Popen([sys.executable, "-c", _RUN.format(module), *words[1:]], stdin=subprocess.DEVNULL, stdout=slave,
                          stderr=slave) as process:
        os.close(slave)
        said = b""
        with contextlib.suppress(OSError):           # the terminal's last writer has gone
            while data := os.read(master, 65536):
                said += data
        os.close(master)
    assert b"Traceback" not in said, said
    assert process.returncode is not None
    return said


@pytest.mark.parametrize("line", LINES.strip().splitlines())
def test_qsb_013b_no_reply_drives_the_terminal(hostile: FakeQubesd, line: str) -> None:
    text = shown(line).decode()
    harmless = text.replace("\r\n", "\n").replace("\x1b[1m", "").replace("\x1b[0m", "")      # ours: the bold names of status
    harmless = harmless.replace("\r\x1b[K", "")
    odd = [character for character in harmless if not character.isprintable() and character not in "\n\t"]
    assert odd == [], text
    assert text.strip() or line.startswith("qvm-check")

"""What a template's tree says of itself, and that nothing in it leads to the host's files."""
from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import cloison
from cloison.templates import offers

OS_RELEASE = """PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
VERSION_ID="12"
ID=debian
ID_LIKE='x y'
SUPPORT_END=2028-06-30
"""
SCRIPT = Path(cloison.__file__).parent / "guest/files/etc/qubes/post-install.d/10-cloison-features.sh"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two services, a link to one, a connection, a folder, and a text that nobody may run."""
    root = tmp_path / "tree"
    services = root / "etc/qubes-rpc"
    services.mkdir(parents=True)
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/os-release").write_text(OS_RELEASE)
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    for name in ("qubes.VMShell", "qubes.VMShell+WaitForSession", "custom.Service", "not.Executable"):
        (services / name).write_text("#!/bin/sh\n")
        (services / name).chmod(0o644 if name.startswith("not") else 0o755)
    (services / "qubes.VMRootShell").symlink_to("qubes.VMShell")
    (services / "qubes.ConnectTCP").symlink_to("/dev/tcp/127.0.0.1")
    (services / "folder").mkdir()
    units = root / "usr/lib/systemd/system"
    (units / "user@.service.d").mkdir(parents=True)
    (units / "sync.service").write_text("[Unit]\nConditionPathExists=!/run/qubes-service/clocksync\nConditionPathExists=/etc/x\n")
    (units / "proxy.path").write_text("[Path]\nPathExists=/run/qubes-service/updates-proxy-setup\n")
    (units / "user@.service.d/10.conf").write_text("ConditionPathExists=/run/qubes-service/user-manager\n")
    (units / "odd.service").write_text("ConditionPathExists=/run/qubes-service/../x\n#ConditionPathExists=/run/qubes-service/no\n")
    (units / "other.txt").write_text("ConditionPathExists=/run/qubes-service/no\n")
    return root


def test_system_and_services(tree: Path) -> None:
    assert offers.of_tree(str(tree)) == {
        "qrexec": "1", "vmexec": "1", "os": "Linux", "qubes-agent-version": offers.AGENT_VERSION,
        "os-distribution": "debian", "os-distribution-like": "x y", "os-version": "12", "os-eol": "2028-06-30",
        "supported-rpc.custom.Service": "1", "supported-rpc.qubes.VMRootShell": "1", "supported-rpc.qubes.VMShell": "1",
        "supported-service.clocksync": "1", "supported-service.updates-proxy-setup": "1", "supported-service.user-manager": "1",
    }


def test_links_do_not_lead_to_the_hosts_files(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text("ID=host\n")
    (tmp_path / "program").write_text("#!/bin/sh\n")
    (tmp_path / "program").chmod(0o755)
    for name in ("usr/lib/os-release", "etc/os-release"):
        (tree / name).unlink()
        (tree / name).symlink_to(tmp_path / "os-release")
    (tree / "etc/qubes-rpc/leads.Out").symlink_to(tmp_path / "program")
    found = offers.of_tree(str(tree))
    assert "os-distribution" not in found and "supported-rpc.leads.Out" not in found
    shutil.rmtree(tree / "etc/qubes-rpc")
    (tree / "etc/qubes-rpc").symlink_to(tmp_path)
    units = tree / "usr/lib/systemd/system"
    units.rename(tmp_path / "system")
    units.symlink_to(tmp_path / "system")
    assert offers.of_tree(str(tree)) == offers.ALWAYS


@pytest.mark.parametrize("text", ["", "ID", "ID='", "ID=$(id)", "ID=\"a\nb\"", "ID=\x1b[31m", "ID=" + "x" * 200, "\0" * 99, "ID=é"])
def test_odd_files_say_nothing(tree: Path, text: str) -> None:
    (tree / "usr/lib/os-release").write_text(text)
    assert "os-distribution" not in offers.of_tree(str(tree))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(tree: Path, make: object) -> None:
    assert callable(make)
    for name in ("usr/lib/os-release", "etc/os-release"):
        (tree / name).unlink()
        make(tree / name)
    assert "os-distribution" not in offers.of_tree(str(tree))


def test_a_running_template_says_the_same(tree: Path, tmp_path: Path) -> None:
    """The guest's own script, on the same tree, with the places it reads changed."""
    said = tmp_path / "said"
    script = SCRIPT.read_text().replace("/etc/os-release", str(tree / "etc/os-release"))
    script = script.replace("/etc/qubes-rpc", str(tree / "etc/qubes-rpc"))
    script = script.replace("/usr/lib/systemd", str(tree / "usr/lib/systemd"))
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "qvm-features-request").write_text(f'#!/bin/sh\nfor word in "$@"; do echo "$word" >> {said}; done\n')
    (tools / "qrexec-client-vm").write_text("#!/bin/sh\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    subprocess.run(["sh", "-c", script], env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}, check=True)
    requested = dict(line.partition("=")[::2] for line in said.read_text().splitlines() if line != "--commit")
    assert requested == offers.of_tree(str(tree))

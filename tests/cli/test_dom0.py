"""cloison dom0: what a program made for dom0 finds, and that it is itself in all else. Real namespaces, as root and as others."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd
from tests.patience import PATIENCE
from tests.spared import SPARED

# The program becomes another user after its modules are loaded: that user may not be allowed to read them.
PROGRAM = """
import ctypes, locale, os, shutil, sys
from cloison.cli import dom0, main
import cloison.qrexec.host.host_service
if user := int(sys.argv[1]):
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)   # PR_SET_DUMPABLE, as after an exec: else /proc/self is root's
sys.exit(main.main(["dom0", "--", *sys.argv[2:]]))
"""
SOMEONE = 54321                          # a user id that no account has
PYTHON = "/usr/bin/python3"              # one that everybody may run


def argv(*command: str, user: int = 0) -> list[str]:
    return [*SPARED, sys.executable, "-c", PROGRAM, str(user), *command]


def dom0(*command: str, user: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(*command, user=user), capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=cwd)


@pytest.fixture(params=["this user", "an ordinary user"])
def user(request: pytest.FixtureRequest, root: Path) -> Iterator[int]:
    """0 for who runs the tests; root also becomes somebody else, who owns the installation then."""
    if request.param == "this user" or os.getuid() != 0:
        yield 0
        return
    for folder in root.parents:
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)          # and it stays so: other workers' tests lie below it, too
    for path in [root, *root.rglob("*")]:
        os.chown(path, SOMEONE, SOMEONE)
    yield SOMEONE


def test_a_foreign_client_finds_dom0(qubesd: FakeQubesd, user: int) -> None:
    """What Qubes OS's own client looks at: a marker, a host name, a socket, folders of services and policy."""
    program = """
import os, socket
assert open("/etc/qubes-release").read().startswith("Qubes release 4.")
assert socket.gethostname() == "dom0" == open("/etc/hostname").read().strip()
sock = socket.socket(socket.AF_UNIX)
sock.connect("/var/run/qubesd.sock")
sock.sendall(b"admin.vm.List+ dom0 name dom0\\0")
sock.shutdown(socket.SHUT_WR)
print(sock.makefile("rb").read().decode().replace("\\0", "|"))
for path in ("/run/qubes", "/run/qubes-service", "/var/run/qubes-service", "/etc/qubes", "/var/lib/qubes"):
    assert os.path.isdir(path), path
for name in ("admin.vm.volume.Import", "admin.vm.volume.ImportWithSize"):
    assert os.access("/etc/qubes-rpc/" + name, os.X_OK)
for path in ("/usr/bin/qrexec-client", "/usr/lib/qubes/qrexec-client"):
    assert os.path.isfile(path) and os.access(path, os.X_OK), path
import grp, pwd
assert grp.getgrnam("qubes").gr_mem
"""
    result = dom0(PYTHON, "-c", program, user=user)
    assert result.stderr == ""
    assert result.stdout.startswith("0|dom0 class=AdminVM state=Running uuid=")


@pytest.mark.parametrize("overlay", [True, False])
def test_a_folder_of_many_programs_gets_ours_besides(tmp_path: Path, overlay: bool) -> None:
    """By an overlay; where the kernel gives none, by a link for each of the host's."""
    program = f"""
import os, sys
from cloison.runtime import namespace
real = namespace._mount
def mount(source, target, kind="", flags=0, options=""):
    if kind == "overlay" and not {overlay}:
        raise OSError(1, "not permitted")
    real(source, target, kind, flags, options)
namespace._mount = mount
before = sorted(os.listdir("/usr/bin"))
view = {{"/usr/bin/our-own": namespace.File(b"#!/bin/sh\\necho ours\\n", 0o755), "/usr/bin/env": namespace.Link("our-own")}}
namespace.enter("dom0", view, layered=["/usr/bin"])
assert sorted({{*before, "our-own"}}) == sorted(os.listdir("/usr/bin"))
assert not os.access("/usr/bin/made", os.F_OK)
try:
    open("/usr/bin/made", "w")
    sys.exit("writable")
except OSError:
    pass
os.execv("/bin/sh", ["sh", "-c", "/usr/bin/our-own; env; /usr/bin/printf x"])
"""
    done = subprocess.run([*SPARED, sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ours\nours\nx", "")


def test_the_host_does_not_change(root: Path, user: int) -> None:
    before = os.listdir("/etc"), os.listdir("/run"), os.listdir("/")
    result = dom0("sh", "-c", "cd /etc && touch /run/made-in-dom0; touch made-in-dom0 || ls made-in-dom0", user=user)
    assert (result.returncode, result.stdout) == (2, "")
    assert not os.path.exists("/etc/qubes-release") or "Cloison" not in Path("/etc/qubes-release").read_text()
    assert before == (os.listdir("/etc"), os.listdir("/run"), os.listdir("/"))


def test_folder_files_user_and_environment_stay(root: Path, user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN", "kept")
    (root / "note").write_text("mine\n")
    result = dom0("sh", "-c", "cat note; id -u; echo $OWN", user=user, cwd=root)
    assert result.stdout.split() == ["mine", str(user or os.getuid()), "kept"]
    for path in ("/etc/passwd", "/usr/lib/os-release", "/etc/os-release"):   # a file, a link's target, a relative link
        assert dom0("cat", path, user=user).stdout == Path(path).read_text()


def test_exit_status_and_signals_are_the_program_s_own(root: Path) -> None:
    assert dom0("sh", "-c", "exit 77").returncode == 77
    assert dom0("sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    with subprocess.Popen(argv("sh", "-c", "trap 'exit 5' USR1; echo ready; while :; do read _; done"),
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert Path(f"/proc/{process.pid}/comm").read_text() == "sh\n"   # the very process that was started
        process.send_signal(signal.SIGUSR1)
        process.stdin.close()
        assert process.wait(PATIENCE) == 5


def test_nothing_to_run(root: Path) -> None:
    missing = dom0("no-such-program")
    assert (missing.returncode, missing.stderr) == (127, "cloison: error: no such command: 'no-such-program'\n")
    assert dom0("/etc/passwd").returncode == 126
    assert "COMMAND is missing" in dom0().stderr


def test_sudo_is_the_same_user(root: Path, user: int) -> None:
    result = dom0("sudo", "-n", "-u", "user", "--", "env", "A=b", "sh", "-c", "id -u; echo $A; exit 3", user=user)
    assert (result.returncode, result.stdout.split()) == (3, [str(user or os.getuid()), "b"])


def test_services_of_the_administrator_are_found(root: Path) -> None:
    folder = root / "config" / "qubes-rpc"
    folder.mkdir(parents=True)
    (folder / "my.Service").write_text("#!/bin/sh\necho served\n")
    (folder / "my.Service").chmod(0o755)
    assert dom0("/etc/qubes-rpc/my.Service").stdout == "served\n"

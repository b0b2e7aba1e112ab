"""A template really built from the Debian archive, as this user and (when that is root) as an ordinary one, and booted."""
from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloison
from cloison.hypervisor import probe
from cloison.runtime.programs import find

pytestmark = pytest.mark.boot

USERS = ["root", "ordinary"] if os.geteuid() == 0 else ["ordinary"]
NOBODY = "65534"
UNIT = b"cloison-agent.serv"     # systemd shortens the rest of its line
DEADLINE = 300.0       # seconds after which a boot counts as hung

BUILD = """
import os, sys
from cloison.runtime.paths import Paths
from cloison.templates.build import GIB, BuildRequest, build
from cloison.templates.contain import Tools
from cloison.templates.work import work_folder
paths = Paths.from_environment()
paths.ensure()
with work_folder(paths) as folder:
    tools = Tools(os.path.join(paths.log, "build.log"))
    request = BuildRequest("test", suite="bookworm", size=4 * GIB)
    built = build(request, paths, folder, tools, lambda percent, words: sys.stdout.write(f"{percent} {words}\\n"))
    os.rename(built.image, os.path.join(paths.data, "root.img"))
print(built.kernel)
"""
# Gives `nobody` subordinate ids, in a mount namespace of its own, and becomes nobody.
BECOME_NOBODY = """
import os, sys
folder = sys.argv[1]
mount = 'mount --bind "$1/ids" /etc/subuid; mount --bind "$1/ids" /etc/subgid; shift; exec "$@"'
os.execvp("sh", ["sh", "-ec", mount, "sh", folder,
                 "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", *sys.argv[2:]])
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that any user reaches; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="cloison-test-"))
    folder.chmod(0o755)
    yield folder
    # What another user's subordinate ids own is only in the work folder, which the build has removed.
    shutil.rmtree(folder)


def command(user: str, place: Path) -> list[str]:
    if user == "root" or os.geteuid() != 0:
        return [sys.executable, "-c", BUILD]
    (place / "ids").write_text("nobody:300000:65536\n")
    shutil.copytree(os.path.dirname(cloison.__file__), place / "src/cloison", ignore=shutil.ignore_patterns("__pycache__"))
    os.chown(place / "root", int(NOBODY), int(NOBODY))
    # The interpreter of a virtual environment may lie where others can't reach; Debian's own is for all.
    return ["unshare", "--mount", sys.executable, "-c", BECOME_NOBODY, str(place), "/usr/bin/python3", "-c", BUILD]


@pytest.mark.parametrize("user", USERS)
def test_built_and_booted(place: Path, user: str) -> None:
    root = place / "root"
    root.mkdir()
    environment = {**os.environ, "CLOISON_ROOT": str(root), "HOME": str(root)}
    if user == "ordinary" and os.geteuid() == 0:
        environment["PYTHONPATH"] = str(place / "src")
    result = subprocess.run(command(user, place), env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    *_, version = result.stdout.splitlines()
    percents = [int(line.split()[0]) for line in result.stdout.splitlines()[:-1]]
    assert percents == sorted(percents) and percents[-1] == 100
    # The sandbox's root has no power over another user's files.
    subprocess.run(["chown", "--recursive", f"{os.geteuid()}:{os.getegid()}", str(root)], check=True)
    assert [name for name in os.listdir(root / "data/tmp") if not name.startswith(".")] == []
    kernel = root / "data/vm-kernels" / version
    assert probe.run_guest(str(kernel), "tcg", DEADLINE).kvm is probe.Kvm.WORKS
    subprocess.run([find("e2fsck"), "-f", "-n", str(root / "data/root.img")], check=True, capture_output=True)
    assert boot(kernel, root / "data/root.img"), "the agent's unit was not started"


def boot(kernel: Path, image: Path) -> bool:
    """Whether systemd starts the agent's unit. The image is changed by nothing: QEMU throws its writes away."""
    disks = [("root", image), ("modules", kernel / "modules.img")]
    argv = [
        find(probe.QEMU), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-snapshot",
        "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512M", "-smp", "2",
        "-kernel", str(kernel / "vmlinuz"), "-initrd", str(kernel / "initramfs"),
        "-append", "console=ttyS0 quiet systemd.show_status=1", "-serial", "stdio", "-device", "virtio-serial-pci",
        "-chardev", "null,id=mux", "-device", "virtserialport,chardev=mux,name=org.cloison.mux",
    ]
    for role, path in disks:
        argv += ["-drive", f"if=none,id={role},format=raw,file={path}"]
        argv += ["-device", f"virtio-blk-pci,drive={role},serial=qubes-{role}"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        untrusted = b""
        try:
            while UNIT not in untrusted and select.select([process.stdout], [], [], DEADLINE)[0]:
                data = os.read(process.stdout.fileno(), 4096)
                if not data:
                    break
                untrusted += data
        finally:
            process.kill()
    return UNIT in untrusted

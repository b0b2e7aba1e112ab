"""A Cloison of its own below one folder, driven by the real tools as a person drives it; and what of it is left on the machine."""
from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import cloison
from cloison.cli.template import register
from cloison.client.connection import Connection, NoDaemon, Stream
from cloison.client.domains import Qube, list_qubes
from cloison.client.events import subscribe
from cloison.runtime import life
from cloison.runtime.paths import Paths
from cloison.runtime.unix import connect
from cloison.templates import offers, suites
from cloison.templates.build import Built
from cloison.wire.admin import Event

SOURCE = "CLOISON_TEST_TEMPLATE_ROOT"      # another installation whose template is copied instead of building one
_TEMPLATES = "data/pools/qcow2/vm-templates"


def _template(environment: Mapping[str, str]) -> str:
    """CLOISON_TEST_TEMPLATE, or what there is to copy, or the one that people get: both Debians are tested, one in each run."""
    source = environment.get(SOURCE)
    found = sorted(os.listdir(Path(source, _TEMPLATES))) if source else []
    return environment.get("CLOISON_TEST_TEMPLATE") or (suites.USUAL if suites.USUAL in found or not found else found[0])


TEMPLATE, DVM = _template(os.environ), "dvm"
# Seconds after which something counts as hung. A boot may take long where the machine is very busy; what is only there or not,
# while nothing boots or ends, is broken when it does not come soon.
LIMIT, BOOT_LIMIT = 30.0, 300.0
BUILD_LIMIT = 1800.0    # the same of a template, whose packages come from a mirror
# Tools that may boot a qube, wait for its end, run whatever in it, or copy a disk.
_SLOW = ("cloison", "qvm-run", "qvm-start", "qvm-shutdown", "qvm-copy-to-vm", "qvm-move-to-vm", "qvm-console-dispvm", "qvm-clone",
         "qvm-create", "qvm-volume")
_UNDER_WAY = ("Transient", "Halting", "Dying")
_TOOL = "import sys; from cloison.cli.{} import main; sys.exit(main())"
_COMMIT = re.compile(r"\.\d+\.(raw|qcow2)$")
_ROOT_IMAGE = re.compile(r"root\.(\d+)\.raw")
# The store's journal and what is only written to, never read back.
_PASSING = ("data/log/", "data/store.sqlite-")

Result = subprocess.CompletedProcess[bytes]


class Place:
    """`root` becomes CLOISON_ROOT. Nothing runs until `up`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = Paths.from_environment({"CLOISON_ROOT": str(root)})
        self.connection = Connection(self.paths)

    # -- the tools -----------------------------------------------------------------------------------------------------

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**os.environ, "CLOISON_ROOT": str(self.root), "CLOISON_FAULT": "", "DISPLAY": "", **(extra or {})}

    def popen(self, words: Sequence[str], extra: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A tool, running: `["qvm-run", "-p", ...]`."""
        pipe = subprocess.PIPE
        return subprocess.Popen(tool(words), env=self.environment(extra), stdin=pipe, stdout=pipe, stderr=pipe)

    def run(
        self, words: Sequence[str], data: bytes = b"", extra: Mapping[str, str] | None = None, limit: float | None = None,
    ) -> Result:
        """A tool's whole life; `data` is its input."""
        limit = limit or (BOOT_LIMIT if words[0] in _SLOW else LIMIT)
        return subprocess.run(tool(words), env=self.environment(extra), input=data, capture_output=True, check=False, timeout=limit)

    def ok(self, words: Sequence[str], data: bytes = b"") -> bytes:
        """Its output; it must have succeeded."""
        result = self.run(words, data)
        assert result.returncode == 0, (words, result.returncode, result.stderr.decode(errors="replace"), self.log())
        return result.stdout

    def sh(self, qube: str, command: str, data: bytes = b"", user: str = "user") -> bytes:
        """Output of a shell command in a qube that must succeed."""
        return self.ok(["qvm-run", "-p", "--user", user, qube, command], data)

    # -- qubesd --------------------------------------------------------------------------------------------------------

    def up(self, fault: str = "") -> None:
        result = self.run(["cloison", "up"], extra={"CLOISON_FAULT": fault})
        assert result.returncode == 0, result.stderr.decode()

    def down(self) -> None:
        """End qubesd and leave the qubes alone. Fine if it does not run."""
        self.ok(["cloison", "down", "--keep"])

    def qubesd(self) -> int:
        """Its process id."""
        with connect(self.paths.socket("qubesd.sock")) as stream:
            pid: int = struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid

    def kill_qubesd(self) -> None:
        kill(self.qubesd())

    def log(self) -> str:
        """What the daemons said last."""
        texts = []
        logs = os.listdir(self.paths.qube_logs) if os.path.isdir(self.paths.qube_logs) else []
        for name in ("qubesd.log", "wardens.log", *(f"qubes/{each}" for each in sorted(logs))):
            with contextlib.suppress(FileNotFoundError):
                texts.append(Path(self.paths.log, name).read_text(errors="replace")[-3000:])
        return "\n".join(texts)

    # -- qubes ---------------------------------------------------------------------------------------------------------

    def qubes(self) -> dict[str, Qube]:
        return list_qubes(self.connection)

    def state(self, name: str) -> str:
        return self.qubes()[name].state

    def under_way(self) -> bool:
        """Whether a qube boots or ends."""
        try:
            return any(qube.state in _UNDER_WAY for qube in self.qubes().values())
        except NoDaemon:
            return False

    def create(self, name: str, *options: str) -> None:
        self.ok(["qvm-create", "--label", "red", *options, name])

    def halt(self, name: str) -> None:
        self.ok(["qvm-shutdown", "--wait", name])

    def kill(self, name: str) -> None:
        self.ok(["qvm-kill", name])

    def remove(self, *names: str) -> None:
        """Whatever state they are in."""
        for name in names:
            qube = self.qubes().get(name)
            if qube is not None:
                if qube.running:
                    self.kill(name)
                self.ok(["qvm-remove", "--force", name])

    def clear(self) -> None:
        """No qube runs; so no disposable without a name is there."""
        for qube in self.qubes().values():
            if qube.klass != "AdminVM" and qube.running:
                self.run(["qvm-kill", qube.name])        # one that has ended meanwhile is fine
        with self.events() as watch:
            watch.until(lambda: not any(qube.running and qube.klass != "AdminVM" for qube in self.qubes().values()))

    @contextlib.contextmanager
    def events(self) -> Iterator[Watch]:
        with subscribe(self.connection) as stream:
            yield Watch(stream, self.under_way)

    def wait_gone(self, uuid: str) -> None:
        """Until the last process of that qube is gone."""
        life.wait_gone(self.paths.qubes, uuid)

    # -- what is on the machine ------------------------------------------------------------------------------------------

    def files(self) -> set[str]:
        """Everything below the root, by name. A commit's number is its own business."""
        found = set()
        for folder, folders, names in os.walk(self.root):
            for name in (*folders, *names):
                path = os.path.relpath(os.path.join(folder, name), self.root)
                if not path.startswith(_PASSING):
                    found.add(_COMMIT.sub(r".N.\1", path))
        return found

    def processes(self) -> dict[int, str]:
        """Those of this place: by their environment, or because they hold a file of it open (a QEMU has no environment)."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid() and self._is_ours(f"/proc/{entry}"):
                found[int(entry)] = _command(f"/proc/{entry}")
        return {pid: command for pid, command in found.items() if command}

    def _is_ours(self, proc: str) -> bool:
        try:
            with open(f"{proc}/environ", "rb") as file:
                if f"CLOISON_ROOT={self.root}".encode() in file.read().split(b"\0"):
                    return True
            return any(path.startswith(f"{self.root}/") for path in _open_files(proc))
        except OSError:
            return False

    def mounts(self) -> list[str]:
        return [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(self.root) in line]

    def process(self, pattern: str, qube: str = "") -> int:
        """The one process of this place whose `name: command line` begins so; with `qube`, of that qube."""
        held = str(Path(self.paths.qubes, f"life.{self.qubes()[qube].uuid}")) if qube else ""
        found = [pid for pid, command in self.processes().items() if re.match(pattern, command) and (not held or _holds(pid, held))]
        assert len(found) == 1, (pattern, qube, self.processes())
        return found[0]

    def await_process(self, pattern: str) -> int:
        """The one process of that pattern, which may just be starting: one that was forked has its parent's words at first."""
        deadline = time.monotonic() + LIMIT
        while True:
            found = [pid for pid, command in self.processes().items() if re.match(pattern, command)]
            if len(found) == 1:
                return found[0]
            assert time.monotonic() < deadline, (pattern, self.processes())

    def await_only_daemons(self) -> None:
        """Until the daemons are all that runs here. A warden that has said its last word still takes a moment to exit, and a
        qubesd that has just started lists QEMU's libraries; what hangs fails `await_ends`.
        """
        daemons = {self.await_process(f"python.*cloison.{name}") for name in ("daemon", "warden.zygote", "qrexec.policyd")}
        while others := set(self.processes()) - daemons:
            await_ends(others)


class Watch:
    """Events as they come, with a limit. `under_way`: whether one may take as long as a boot."""

    def __init__(self, stream: Stream, under_way: Callable[[], bool]) -> None:
        self._stream, self._under_way = stream, under_way
        self._events = iter(stream)
        self.seen: list[Event] = []

    def until(self, holds: Callable[[], bool]) -> None:
        """Look now and after every event."""
        while not holds():
            self._take()

    def event(self, name: str, subject: str = "") -> Event:
        while True:
            event = self._take()
            if event.event == name and subject in ("", event.subject):
                return event

    def _take(self) -> Event:
        # The stream may hold a whole event already; then nothing new is readable.
        end = time.monotonic() + BOOT_LIMIT

        def late(_signal: int, _frame: object) -> None:
            if time.monotonic() > end or not self._under_way():
                raise TimeoutError(f"no such event within {LIMIT} s, and no qube boots or ends; seen: {self.seen[-5:]}")

        timer = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, LIMIT, LIMIT)
        try:
            self.seen.append(next(self._events))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, timer)
        return self.seen[-1]


def tool(words: Sequence[str]) -> list[str]:
    """The argv of one of our tools with this interpreter."""
    module = "main" if words[0] == "cloison" else words[0].replace("-", "_")
    return [sys.executable, "-c", _TOOL.format(module), *words[1:]]


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """End a process and wait until it is gone."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, number)
        assert select.select([process], [], [], LIMIT)[0], f"process {pid} does not end"
    finally:
        os.close(process)


def await_ends(pids: Collection[int]) -> None:
    """Until all these processes are gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                assert select.select([process], [], [], LIMIT)[0], f"process {pid} does not end"
            finally:
                os.close(process)


def _command(proc: str) -> str:
    """Name and beginning of the command line; empty for a process that is gone or only waits to be reaped."""
    try:
        name = Path(proc, "comm").read_text().strip()
        command = Path(proc, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
    return f"{name}: {command[:100]}" if command else ""


def _open_files(proc: str) -> list[str]:
    """What its descriptors are. One that is closed meanwhile hides no other. Raises OSError for a process that is gone."""
    found = []
    for fd in os.listdir(f"{proc}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"{proc}/fd/{fd}"))
    return found


def _holds(pid: int, path: str) -> bool:
    """It or a process above it; QEMU does not hold its qube's lock, but pid 1 of its box does."""
    with contextlib.suppress(OSError):
        if path in _open_files(f"/proc/{pid}"):
            return True
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return parent > 1 and _holds(parent, path)
    return False


# -- templates ---------------------------------------------------------------------------------------------------------------


def newest_root(source: Path) -> Path:
    """The template's last whole root image in another place."""
    folder = source / _TEMPLATES / TEMPLATE
    images = {int(match[1]): path for path in folder.iterdir() if (match := _ROOT_IMAGE.fullmatch(path.name))}
    return images[max(images)]


def copy_parts(place: Place, source: Path) -> Built:
    """Kernel and root image of another place's template, where `register` takes them from."""
    kernels = source / "data/vm-kernels"
    version = sorted(path.name for path in kernels.iterdir() if not path.name.startswith("."))[-1]
    place.paths.ensure()
    shutil.copytree(kernels / version, Path(place.paths.kernels, version))
    image = os.path.join(place.paths.tmp, "copied-root.img")
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", str(newest_root(source)), image], check=True)
    os.chmod(image, 0o600)
    services = (name for name in os.listdir(Path(cloison.__file__).parent / "guest/services") if name.startswith("qubes."))
    return Built(image, version, os.path.getsize(image), {**offers.ALWAYS, **{f"supported-rpc.{name}": "1" for name in services}})


def furnish(place: Place, built: Built | None) -> None:
    """A template (built now if None is given) and the default disposable template on it."""
    if built is None:
        result = place.run(["cloison", "template", "build", TEMPLATE, "--size", "4G"], limit=BUILD_LIMIT)
        assert result.returncode == 0, result.stderr.decode(errors="replace")
    else:
        register(place.connection, TEMPLATE, built, exists=False)
    place.create(DVM, "--template", TEMPLATE, "--property", "template_for_dispvms=True")
    place.ok(["qubes-prefs", "default_dispvm", DVM])


def is_up(place: Place) -> bool:
    try:
        place.qubes()
    except NoDaemon:
        return False
    return True

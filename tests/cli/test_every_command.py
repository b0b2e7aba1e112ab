"""No command prints a traceback, whatever is closed, full or missing: each installed command and verb of `cloison`, each way."""
from __future__ import annotations

import contextlib
import copy
import itertools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_qubesd import FakeQubesd, FakeWarden
from tests.spared import SPARED

from cloison.cli import main
from cloison.qrexec.policyd.policy_files import folders, make_folders
from cloison.runtime.paths import Paths
from cloison.wire import admin

LIMIT = 30.0                             # seconds after which a command counts as hung, on a machine that is busy
SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]

# One line a command, which says something where it can and changes nothing of this machine.
LINES = """
cloison ask-agent --help
cloison bench --help
cloison completion bash
cloison demo --help
cloison doctor --help
cloison log --help
cloison dom0 -- /bin/echo hello
cloison down --help
cloison kernel list
cloison policy log
cloison qubes-xml --help
cloison status
cloison template list
cloison up --help
qrexec-agent --help
qrexec-client -d work 'user:echo hello'
qrexec-client-vm work test.Add
qrexec-daemon --help
qrexec-fork-server -h
qrexec-legacy-convert --help
qrexec-policy --just-evaluate work sys-net test.Add+
qrexec-policy-exec work sys-net test.Add+
qrexec-policy-graph
qubes-policy -l
qubes-policy-editor
qubes-policy-lint -
qubes-prefs
qubesd-query -e dom0 admin.vm.List dom0
qvm-block list
qvm-check work
qvm-clone work copied
qvm-console-dispvm work
qvm-copy-to-vm sys-net /etc/hostname
qvm-create --label red --template debian-12 made
qvm-device --list-device-classes
qvm-features work
qvm-firewall work
qvm-kill sys-net
qvm-ls
qvm-move-to-vm sys-net /nonexistent
qvm-notes -p work
qvm-pause sys-net
qvm-pci list
qvm-pool
qvm-prefs work
qvm-remove work
qvm-run -p sys-net 'echo hello'
qvm-service work
qvm-shutdown sys-net
qvm-start work
qvm-tags work
qvm-unpause sys-net
qvm-usb list
qvm-volume list work
""".strip().splitlines()

# Started by sitecustomize: a person's Ctrl-C while the named module is loaded, and when the command waits for qubesd.
INTERRUPT = """
import os, signal, sys
class At:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, At())
"""


BROKEN = "| :"                           # standard output is a pipe that nobody reads


class Way(NamedTuple):
    """How a command is met: words for a shell to set its streams, and variables of its environment (None: taken out)."""

    streams: str = ""
    environment: dict[str, str | None] = {}


WAYS = {
    "as it should be": Way(),
    "stderr full": Way("2>/dev/full"),
    "all closed": Way("<&- >&- 2>&-"),
    "stdin and stdout closed": Way("<&- >&-"),
    "stdout full": Way(">/dev/full"),
    "stdout broken": Way(BROKEN),
    "no home, no daemon, bad terminal": Way("", {
        "CLOISON_ROOT": None, "HOME": None, "XDG_RUNTIME_DIR": "{empty}", "XDG_DATA_HOME": "{empty}", "XDG_CONFIG_HOME": "{empty}",
        "TERM": "no-such-terminal", "COLUMNS": "nonsense", "LANG": "no_SUCH", "LC_ALL": "C", "PYTHONUTF8": "0"}),
    "home missing, run folder not writable": Way("", {
        "CLOISON_ROOT": None, "HOME": "/proc/nowhere", "XDG_RUNTIME_DIR": "/proc/self"}),
    "configuration not readable": Way("", {"CLOISON_ROOT": "{broken}"}),
    "stdout full, unbuffered": Way(">/dev/full", {"PYTHONUNBUFFERED": "1"}),
    "the root is a file": Way("", {"CLOISON_ROOT": "{file}"}),
    "nobody listens any more": Way("", {"CLOISON_ROOT": "{dead}"}),
    "qubesd hangs up": Way("", {"CLOISON_ROOT": "{hung}"}),
    "no programs": Way("", {"PATH": "{empty}"}),
    "Ctrl-C at once": Way("", {"INTERRUPT_AT": "cloison.errors"}),
}
EDITORS = {"that fails": "/bin/false", "that is missing": "/no/such", "that is no command": "'"}
# They load nothing of ours but their own module.
_NO_IMPORTS = ("qrexec-client ", "qrexec-client-vm ")


@pytest.fixture
def places(qubesd: FakeQubesd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Folders that ways speak of."""
    qubesd.answers |= {
        "internal.cloison.Status": lambda _, __: admin.ok(b'{"accelerator": "kvm", "warm_images": []}'),
        "internal.GetSystemInfo": lambda _, __: admin.ok(b'{"domains": {}}'),
        "admin.vm.volume.List": lambda _, __: admin.ok(b"private\n"),
        "admin.vm.volume.Info": lambda _, __: admin.ok(b"pool=p\nvid=v\nsize=1\nusage=0\n"),
    }
    root = qubesd.run.parent
    make_folders(folders(Paths(str(qubesd.run), str(root / "data"), str(root / "config"))))    # as the first policy tool would
    broken = tmp_path_factory.mktemp("broken")
    (broken / "config").mkdir()
    (broken / "config" / "policy.d").write_text("a file where a folder should be")
    (broken / "config" / "include").symlink_to("include")
    (broken / "run").symlink_to(qubesd.run)
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(INTERRUPT)
    (broken / "file").write_text("no folder")
    dead, hung = tmp_path_factory.mktemp("dead"), tmp_path_factory.mktemp("hung")
    (dead / "run" / "qubes").mkdir(parents=True)
    for name in ("qubesd.sock", "qubesd.internal.sock", "policy.sock", "policy-agent.sock", "qubes/qrexec.work"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(dead / "run" / name))
    (hung / "run").mkdir()
    with contextlib.ExitStack() as listeners:
        for name in ("qubesd.sock", "qubesd.internal.sock"):
            listeners.enter_context(hanging_up(str(hung / "run" / name)))
        yield {"{empty}": str(tmp_path_factory.mktemp("empty")), "{broken}": str(broken), "{site}": str(site),
               "{file}": str(broken / "file"), "{dead}": str(dead), "{hung}": str(hung)}


@contextlib.contextmanager
def hanging_up(path: str) -> Iterator[None]:
    """A daemon that takes each connection and closes it without a word."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)

        def serve() -> None:
            with contextlib.suppress(OSError):          # shut down
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


class Done(NamedTuple):
    status: int
    said: str


def met(line: str, way: Way, places: dict[str, str], given: list[bytes] | None = None) -> Done:
    """Run the command as its script would, with the words of the line or those given; what it says on its terminal and the streams
    that are left to it.
    """
    name, *words = shlex.split(line)
    module, _, function = SCRIPTS[name].partition(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"
    environment = {**os.environ, "EDITOR": "/bin/true"}
    environment.pop("PYTHONUNBUFFERED", None)
    for key, value in way.environment.items():
        environment.pop(key, None)
        if value is not None:
            environment[key] = places.get(value, value)
    if "INTERRUPT_AT" in way.environment:
        environment["PYTHONPATH"] = os.pathsep.join([places["{site}"], os.environ.get("PYTHONPATH", "")])
    argv: list[str | bytes] = [sys.executable, "-c", code, *(words if given is None else given)]
    if line.startswith("cloison dom0"):
        argv = [*SPARED, *argv]
    if way.streams and way.streams != BROKEN:
        argv = ["/bin/sh", "-c", f'exec "$@" {way.streams}', "sh", *argv]
    with closed_pipe() as broken, subprocess.Popen(
        argv, env=environment, stdin=subprocess.DEVNULL, stdout=broken if way.streams == BROKEN else subprocess.PIPE,
        stderr=subprocess.PIPE if way.streams == BROKEN else subprocess.STDOUT,
    ) as process:
        return _end(process)


def _end(process: subprocess.Popen[bytes]) -> Done:
    try:
        said, complaints = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        return Done(process.wait(), "it hangs")
    return Done(process.returncode, ((said or b"") + (complaints or b"")).decode("utf-8", "replace"))


@contextlib.contextmanager
def closed_pipe() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def test_every_command_and_verb_is_walked() -> None:
    walked = [shlex.split(line)[0] for line in LINES]
    assert set(walked) == set(SCRIPTS)
    verbs = {shlex.split(line)[1] for line in LINES if line.startswith("cloison ")}
    assert verbs == {"up", "down", "status", "completion", *main.OTHERS}


def walk(way: str, places: dict[str, str]) -> dict[str, Done]:
    """How each command ends."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(LINES, pool.map(lambda line: met(line, WAYS[way], places), LINES), strict=True))


def ugly(ends: dict[str, Done]) -> dict[str, Done]:
    """Those that broke down, or that Python had to end."""
    broken = re.compile("Traceback|Exception ignored|lost sys|Fatal Python|it hangs")
    return {line: end for line, end in ends.items() if broken.search(end.said) or end.status < 0 or end.status == 120}


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("as it should be", "stderr full")])
def test_no_command_prints_a_traceback(places: dict[str, str], way: str) -> None:
    ends = walk(way, places)
    assert ugly(ends) == {}
    if way == "Ctrl-C at once":
        assert {line: end for line, end in ends.items() if end != (130, "") and not line.startswith(_NO_IMPORTS)} == {}


def test_errors_that_nobody_reads_change_nothing(places: dict[str, str], qubesd: FakeQubesd) -> None:
    """One at a time, each on the same qubes: the commands change them, and two at once would decide each other's status."""
    before = qubesd.qubes
    ends: dict[str, dict[str, Done]] = {"as it should be": {}, "stderr full": {}}
    for way, line in itertools.product(ends, LINES):
        qubesd.qubes = copy.deepcopy(before)
        ends[way][line] = met(line, WAYS[way], places)
    told, lost = ends.values()
    assert ugly(told) == ugly(lost) == {}
    assert {line: end.status for line, end in lost.items()} == {line: end.status for line, end in told.items()}


@pytest.mark.parametrize("editor", EDITORS)
def test_an_editor(places: dict[str, str], editor: str) -> None:
    end = met("qubes-policy-editor", Way("", {"EDITOR": EDITORS[editor], "VISUAL": None}), places)
    assert end.status == 1 and end.said.startswith("qubes-policy-editor: error: ") and len(end.said.splitlines()) == 2


def test_output_that_is_lost_is_told_and_is_no_success(places: dict[str, str]) -> None:
    for streams, reason in ((">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")):
        for line in ("qvm-ls", "qvm-ls --help", "cloison completion bash", "qubesd-query -e dom0 admin.vm.List dom0"):
            end = met(line, Way(streams), places)
            assert (end.status, end.said) == (1, f"{line.split()[0]}: error: the output can't be written: {reason}\n"), line
    assert met("qvm-check -q work", Way(">&-"), places) == (0, "")          # it had nothing to say
    assert met("qvm-ls", Way(BROKEN), places) == (141, "")
    assert met("qvm-ls", Way("2>&-"), places).status == 0


@pytest.mark.parametrize("unbuffered", [None, "1"])
def test_help_that_is_lost_is_told_by_every_command(places: dict[str, str], unbuffered: str | None) -> None:
    """argparse swallows the failure."""
    lines = [f"{name} {option}" for name in SCRIPTS if not name.startswith("qrexec-") for option in ("--help", "--version")]
    lines += ["qrexec-policy-exec --help", "qrexec-daemon --help", "qrexec-agent --help", "cloison completion zsh",
              "cloison template build --help"]
    lines = [line for line in lines if line != "qubesd-query --version"]

    way = Way(">/dev/full", {"PYTHONUNBUFFERED": unbuffered})
    with ThreadPoolExecutor(4) as pool:
        ends = dict(zip(lines, pool.map(lambda line: met(line, way, places), lines), strict=True))
    wanted = {line: Done(1, f"{line.split()[0]}: error: the output can't be written: No space left on device\n") for line in lines}
    assert ends == wanted


WORDS = {"that are no text": b"\xff\xfe\x1b[31m\nb", "that are long": b"x" * 100_000, "that are empty": b""}


@pytest.mark.parametrize("words", WORDS)
def test_words(places: dict[str, str], words: str) -> None:
    """Where a qube's name, a setting or a file is expected."""
    def one(line: str) -> Done:
        argv = [os.fsencode(word) for word in shlex.split(line)]
        return met(line, Way("", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}), places, [*argv[1:], WORDS[words]])

    lines = [line for line in LINES if "--help" not in line and not line.startswith(("cloison dom0", "cloison completion"))]
    with ThreadPoolExecutor(4) as pool:
        ends = dict(zip(lines, pool.map(one, lines), strict=True))
    assert ugly(ends) == {}
    assert {line for line, end in ends.items() if "\x1b" in end.said or "fault of Cloison's own" in end.said} == set()


def test_nothing_is_printed_into_a_socket_that_took_a_closed_stream_s_place(places: dict[str, str], qubesd: FakeQubesd) -> None:
    """The connection to qubesd would be descriptor 1, and a message for the person part of a call."""
    assert met("qvm-check --paused work", Way("<&- >&- 2>&-"), places) == (1, "")
    assert qubesd.calls == [("dom0", "admin.vm.List", "", b"")]


def test_what_a_qube_says_to_a_closed_stream_is_thrown_away(places: dict[str, str], warden: FakeWarden, qubesd: FakeQubesd) -> None:
    qubesd.qubes["work"]["state"] = "Running"
    for streams in (">&-", "<&- >&-", "<&- >&- 2>&-"):
        assert met("qvm-run -p work 'cat; echo said; exit 3'", Way(streams), places) == (3, ""), streams


def test_ctrl_c_while_qubesd_works(places: dict[str, str], qubesd: FakeQubesd) -> None:
    started: dict[str, Any] = {}

    def interrupt(_: FakeQubesd, __: admin.Request) -> bytes:
        os.kill(started["pid"](), signal.SIGINT)
        return b""

    def child() -> int:
        return int(Path(places["{empty}"], "pid").read_text())

    started["pid"] = child
    qubesd.answers["admin.vm.List"] = interrupt
    code = "import os, sys; open({!r}, 'w').write(str(os.getpid())); from cloison.begin import {name}; sys.exit({name}())"
    for name in ("qvm_ls", "qvm_start", "qvm_run", "cloison"):
        words = {"cloison": ["status"], "qvm_run": ["work", "true"], "qvm_start": ["work"]}.get(name, [])
        text = code.format(places["{empty}"] + "/pid", name=name)
        with subprocess.Popen([sys.executable, "-c", text, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            end = _end(process)
        assert end == (130, ""), name


def test_a_fault_of_ours_is_one_sentence_and_can_be_shown(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import cloison.errors\ndel cloison.errors.QubeInUse\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}

    def run(**more: str) -> str:
        code = "import sys; from cloison.begin import qvm_shutdown; sys.exit(qvm_shutdown())"
        done = subprocess.run([sys.executable, "-c", code, "work"], env=environment | more,
                              capture_output=True, text=True, check=False, timeout=LIMIT)
        assert done.returncode == 1
        return done.stderr

    told = run()
    assert told.startswith("qvm-shutdown: error: the installation is not whole: cannot import name 'QubeInUse'")
    assert len(told.splitlines()) == 2
    assert "Traceback" in run(CLOISON_TRACEBACK="1")



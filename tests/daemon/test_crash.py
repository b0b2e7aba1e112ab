"""kill -9 of qubesd between any two steps: the next one finds each qube as before or as after, and no stray file (lesson 38)."""
from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.errors import PeerError
from cloison.wire.admin import Failure, parse_reply

DAEMON = str(Path(__file__).with_name("crash_daemon.py"))


@contextmanager
def daemon(root: Path, fault: str = "") -> Iterator[subprocess.Popen[bytes]]:
    environ = {**os.environ, "CLOISON_FAULT": fault}
    process = subprocess.Popen([sys.executable, DAEMON, str(root)], env=environ, stderr=subprocess.PIPE)
    try:
        wait_until_ready(root, process)
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def wait_until_ready(root: Path, process: subprocess.Popen[bytes]) -> None:
    """A daemon that died tells why; one that lives accepts in the end."""
    while process.poll() is None:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(root / "run" / "qubesd.sock"))
            except OSError:
                os.sched_yield()
                continue
            return
    assert process.stderr is not None
    raise AssertionError(process.stderr.read().decode())


def call(root: Path, method: str, dest: str, payload: str = "", *, socket_name: str = "qubesd.sock") -> str | Failure | None:
    """None: the daemon died."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(root / "run" / socket_name))      # with a time limit, a full queue would be a refusal
        client.settimeout(PATIENCE)
        try:
            client.sendall(f"{method} dom0 name {dest}\0{payload}".encode())
            client.shutdown(socket.SHUT_WR)
            data = b"".join(iter(lambda: client.recv(65536), b""))
            reply = parse_reply(data)
        except (OSError, PeerError):
            return None
    return reply if isinstance(reply, Failure) else reply.decode()


def inventory(root: Path) -> set[str]:
    """Volumes by their records, `-dirty` for one in use, and every file that belongs to none."""
    pool = root / "data" / "pools" / "qcow2"
    found = set()
    for path in (path for path in pool.rglob("*") if path.is_file() and path.parent.name != ".blank"):
        name = path.name.partition(".")[0]
        record = path.with_name(name + ".json")
        if not record.exists():
            found.add(str(path.relative_to(pool)))
            continue
        number = json.loads(record.read_text())["dirty"]
        place = str(path.parent.relative_to(pool) / name)
        found |= {place} if number is None else {place, f"{place}-dirty"}
    return found


SETUP = (
    ("admin.vm.Create.TemplateVM", "dom0", "name=tpl label=black"),
    ("admin.property.Set+default_template", "dom0", "tpl"),
    ("admin.vm.Create.AppVM", "dom0", "name=old label=red"),
)
TPL = {"vm-templates/tpl/root", "vm-templates/tpl/private"}
OLD, WORK = {"appvms/old/private"}, {"appvms/work/private"}

# fault point, calls before it, the call that dies, what the qubes are afterwards, files that go with it
Step = tuple[str, str, str]
CASES: tuple[tuple[str, tuple[Step, ...], Step, dict[str, str], set[str]], ...] = (
    ("create:after-store", (), ("admin.vm.Create.AppVM", "dom0", "name=work label=blue"), {"old": "Halted"}, OLD),
    ("create:after-volumes", (), ("admin.vm.Create.AppVM", "dom0", "name=work label=blue"), {"old": "Halted"}, OLD),
    ("start:after-storage", (), ("admin.vm.Start", "old", ""), {"old": "Halted"}, OLD),
    ("start:after-machine", (), ("admin.vm.Start", "old", ""), {"old": "Running"}, OLD | {"appvms/old/private-dirty"}),
    ("shutdown:after-machine", (("admin.vm.Start", "old", ""),), ("admin.vm.Kill", "old", ""), {"old": "Halted"}, OLD),
    ("shutdown:after-storage", (("admin.vm.Start", "old", ""),), ("admin.vm.Kill", "old", ""), {"old": "Halted"}, OLD),
    ("remove:after-store", (), ("admin.vm.Remove", "old", ""), {}, set()),
    ("remove:after-volumes", (), ("admin.vm.Remove", "old", ""), {}, set()),
)


def qubes(root: Path) -> dict[str, str]:
    listing = call(root, "admin.vm.List", "dom0")
    assert isinstance(listing, str)
    words = [line.split() for line in listing.splitlines()]
    return {word[0]: word[2].removeprefix("state=") for word in words if word[0] not in ("dom0", "tpl")}


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_lesson_38_killed_at_each_step(
    tmp_path: Path, case: tuple[str, tuple[Step, ...], Step, dict[str, str], set[str]]
) -> None:
    fault, before, dying, states, files = case
    with daemon(tmp_path):
        for step in (*SETUP, *before):
            assert call(tmp_path, *step) == "", step
    with daemon(tmp_path, fault) as process:
        assert call(tmp_path, *dying) is None
        assert process.wait(PATIENCE) == -9
    with daemon(tmp_path):
        assert qubes(tmp_path) == states
        assert inventory(tmp_path) == TPL | files
        assert call(tmp_path, "admin.vm.Create.AppVM", "dom0", "name=work label=blue") == ""
        assert inventory(tmp_path) == TPL | files | WORK


def test_killed_before_a_fresh_system_was_stored(tmp_path: Path) -> None:
    """The next one makes it anew: never a dom0 without labels and pools."""
    with pytest.raises(AssertionError), daemon(tmp_path, "furnish:before-store"):
        pass                             # it died before it listened
    with daemon(tmp_path):
        for method, names in (("admin.label.List", {"red", "black"}), ("admin.pool.List", {"varlibqubes", "linux-kernel"})):
            listed = call(tmp_path, method, "dom0")
            assert isinstance(listed, str) and names <= set(listed.split())


@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_a_lost_store_is_not_taken_for_a_fresh_system(tmp_path: Path, damage: str) -> None:
    with daemon(tmp_path):
        for step in SETUP:
            assert call(tmp_path, *step) == "", step
    store = tmp_path / "data" / "store.sqlite"
    for path in store.parent.glob("store.sqlite*"):
        path.unlink()
    if damage == "empty":
        store.touch()
    with pytest.raises(AssertionError, match=r"is missing or empty, but .* holds volumes of qubes"), daemon(tmp_path):
        pass
    assert inventory(tmp_path) == TPL | OLD


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_the_data_folder_elsewhere_has_its_own_pools(tmp_path: Path, how: str) -> None:
    """A copy that wrote into the original's volumes would destroy both."""
    before, after = tmp_path / "before", tmp_path / "after"
    with daemon(before):
        for step in SETUP:
            assert call(before, *step) == "", step
    after.mkdir()
    subprocess.run(["cp", "--archive", "--sparse=always", str(before / "data"), str(after)], check=True)
    if how == "moved":
        shutil.rmtree(before)
    else:
        original = inventory(before)
    with daemon(after):
        assert call(after, "admin.vm.Start", "old") == ""
        assert call(after, "admin.vm.Kill", "old") == ""
        assert call(after, "admin.vm.Create.AppVM", "dom0", "name=work label=blue") == ""
        info = call(after, "admin.pool.Info+varlibqubes", "dom0")
        assert isinstance(info, str) and f"dir_path={after}/data/pools/qcow2\n" in info
        assert inventory(after) == TPL | OLD | WORK
    if how == "copied":
        assert inventory(before) == original


def test_what_a_killed_template_build_left_is_swept(tmp_path: Path) -> None:
    with daemon(tmp_path):
        pass
    left = tmp_path / "data" / "tmp" / "template-0123456789abcdef"
    (left / "tree").mkdir(parents=True)
    with daemon(tmp_path) as process:
        while left.exists():
            assert process.poll() is None
            os.sched_yield()


def size(root: Path) -> int:
    info = call(root, "admin.vm.volume.Info+private", "old")
    assert isinstance(info, str)
    return int(info.partition("\nsize=")[2].split("\n")[0])


VOLUME_CALLS = (
    ("Resize", "storage:record:before", 2), ("Resize", "storage:record:after", 3), ("Clear", "storage:empty:made", 2),
    ("Clear", "storage:record:after", 2), ("Revert", "storage:revert:linked", 2), ("Revert", "storage:record:after", 2),
    ("CloneTo", "storage:clone:linked", 2), ("CloneTo", "storage:record:after", 3),
)


@pytest.mark.parametrize(("method", "fault", "gib"), VOLUME_CALLS)
def test_a_volume_call_killed_in_the_middle_is_done_or_was_never_asked(tmp_path: Path, method: str, fault: str, gib: int) -> None:
    """GiB: the size that model and pool agree on afterwards."""
    with daemon(tmp_path):
        for step in (*SETUP, ("admin.vm.volume.Clear+private", "old", ""), ("admin.vm.Create.AppVM", "dom0", "name=big label=red"),
                     ("admin.vm.volume.Resize+private", "big", str(3 << 30))):
            assert call(tmp_path, *step) == "", step
        revision = call(tmp_path, "admin.vm.volume.ListSnapshots+private", "old")
    assert isinstance(revision, str)
    with daemon(tmp_path, fault) as process:
        token = call(tmp_path, "admin.vm.volume.CloneFrom+private", "big")
        payload = {"Resize": str(3 << 30), "Clear": "", "Revert": revision, "CloneTo": token}[method]
        assert isinstance(payload, str)
        assert call(tmp_path, f"admin.vm.volume.{method}+private", "old", payload) is None
        assert process.wait(PATIENCE) == -9
    with daemon(tmp_path):
        assert size(tmp_path) == gib << 30
        assert inventory(tmp_path) == TPL | OLD | {"appvms/big/private"}
        assert call(tmp_path, "admin.vm.Start", "old") == ""
        assert call(tmp_path, "admin.vm.Kill", "old") == ""


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    with daemon(tmp_path):
        second = subprocess.run([sys.executable, DAEMON, str(tmp_path)], capture_output=True, timeout=PATIENCE, check=False)
        assert second.returncode != 0
        assert b"another qubesd" in second.stderr
        assert qubes(tmp_path) == {}


def test_lesson_39_a_disposable_leaves_nothing_when_qubesd_dies(tmp_path: Path) -> None:
    with daemon(tmp_path) as process:
        for step in (*SETUP, ("admin.vm.property.Set+template_for_dispvms", "old", "True")):
            assert call(tmp_path, *step) == ""
        before = inventory(tmp_path)
        name = call(tmp_path, "admin.vm.CreateDisposable", "old")
        assert isinstance(name, str)
        process.kill()
        process.wait(PATIENCE)
    with daemon(tmp_path):
        assert qubes(tmp_path) == {"old": "Halted"}
        assert inventory(tmp_path) == before
        assert call(tmp_path, "admin.vm.Remove", "old") == ""


def test_lesson_38_a_change_of_many_rows_is_whole_or_not_at_all(tmp_path: Path) -> None:
    """A provider of network is a property and a feature; the daemon dies when the first of them is written."""
    def state() -> tuple[object, bool]:
        feature = call(tmp_path, "admin.vm.feature.Get+servicevm", "old")
        return call(tmp_path, "admin.vm.property.Get+provides_network", "old"), not isinstance(feature, Failure)

    with daemon(tmp_path):
        for step in SETUP:
            assert call(tmp_path, *step) == ""
    with daemon(tmp_path, "store:row") as process:
        assert call(tmp_path, "admin.vm.property.Set+provides_network", "old", "True") is None
        assert process.wait(PATIENCE) == -9
    with daemon(tmp_path):
        assert state() == ("default=True type=bool False", False)
        assert call(tmp_path, "admin.vm.property.Set+provides_network", "old", "True") == ""
        assert state() == ("default=False type=bool True", True)


@pytest.mark.parametrize("error", ["eio", "enospc"])
def test_with_a_broken_store_alone_no_volume_call_changes_the_pool(tmp_path: Path, error: str) -> None:
    """A real daemon, whose store fails at each write; each call says that nothing was changed, and nothing was."""
    with daemon(tmp_path):
        for step in (*SETUP, ("admin.vm.volume.Clear+private", "old", ""), ("admin.vm.Create.AppVM", "dom0", "name=big label=red")):
            assert call(tmp_path, *step) == "", step
        revision = call(tmp_path, "admin.vm.volume.ListSnapshots+private", "old")
    assert isinstance(revision, str)
    files = {path: path.read_bytes() for path in (tmp_path / "data" / "pools").rglob("*.json")}
    with daemon(tmp_path, f"store:write={error}"):
        begun = call(tmp_path, "internal.vm.volume.ImportBegin+private", "old", "512", socket_name="qubesd.internal.sock")
        assert isinstance(begun, str) and Path(begun.split(" ", 1)[1]).exists()
        token = call(tmp_path, "admin.vm.volume.CloneFrom+private", "big")
        assert isinstance(token, str)
        for method, payload, name in (
            ("internal.vm.volume.ImportEnd+private", "ok", "qubesd.internal.sock"),
            ("admin.vm.volume.Resize+private", str(3 << 30), "qubesd.sock"), ("admin.vm.volume.Clear+private", "", "qubesd.sock"),
            ("admin.vm.volume.Revert+private", revision, "qubesd.sock"), ("admin.vm.volume.CloneTo+private", token, "qubesd.sock"),
            ("admin.vm.Remove", "", "qubesd.sock"),
        ):
            answer = call(tmp_path, method, "old", payload, socket_name=name)
            assert isinstance(answer, Failure), (method, answer)
            assert answer.message.endswith("; nothing was changed"), (method, answer)
        assert {path: path.read_bytes() for path in (tmp_path / "data" / "pools").rglob("*.json")} == files
        assert qubes(tmp_path) == {"old": "Halted", "big": "Halted"}
    with daemon(tmp_path):
        assert size(tmp_path) == 2 << 30 and call(tmp_path, "admin.vm.volume.Resize+private", "old", str(3 << 30)) == ""
        assert inventory(tmp_path) == TPL | OLD | {"appvms/big/private"}

"""A process's own view of the files: what is laid over, what shines through, what may be written; the host stays as it is."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.patience import PATIENCE
from tests.spared import SPARED

from cloison.runtime import namespace
from cloison.runtime.namespace import File, Link, NamespacesRefused

PROGRAM = """
import json, os, socket, sys
from cloison.runtime.namespace import File, Link, enter

def namespaces():
    return [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "uts")]

folder, given = sys.argv[1], namespaces()
os.chdir(folder)
enter("cloison-view", {
    f"{folder}/here/ours": File(b"our content", 0o755), f"{folder}/here/hidden": File(b"ours instead"),
    f"{folder}/here/deep/down/link": Link("/etc/hostname"),
    f"{folder}/many/ours": Link("../here/ours"), f"{folder}/mixed/ours": File(b"1"), f"{folder}/mixed/deep/ours": File(b"2"),
}, writable=[f"{folder}/here"], layered=[f"{folder}/many", f"{folder}/mixed"])

def refused(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return os.strerror(error.errno)

open(f"{folder}/here/new", "w").write("lost at the end")
print(json.dumps({
    "own": [one != other for one, other in zip(given, namespaces())],
    "host": socket.gethostname(), "folder": os.getcwd(), "here": sorted(os.listdir(f"{folder}/here")),
    "ours": open(f"{folder}/here/ours").read(), "mode": oct(os.stat(f"{folder}/here/ours").st_mode & 0o777),
    "hidden": open(f"{folder}/here/hidden").read(), "kept": open(f"{folder}/here/kept").read(),
    "up": os.listdir(f"{folder}/here/sub/.."), "sub": open(f"{folder}/here/sub/file").read(),
    "link": os.readlink(f"{folder}/here/deep/down/link"), "linked": os.readlink(f"{folder}/here/linked"),
    "many": sorted(os.listdir(f"{folder}/many")), "through": open(f"{folder}/many/ours").read(),
    "mixed": sorted(os.listdir(f"{folder}/mixed")), "both": open(f"{folder}/mixed/deep/ours").read(),
    "refused": [refused(f"{folder}/many/new"), refused(f"{folder}/mixed/new"), refused("/new")],
}))
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Some of the host's own files."""
    for path in ("here/sub", "many", "mixed/deep"):
        (tmp_path / path).mkdir(parents=True)
    for path in ("here/hidden", "here/kept", "here/sub/file", "many/one", "many/two", "mixed/one", "mixed/deep/one"):
        (tmp_path / path).write_text("the host's")
    (tmp_path / "here/linked").symlink_to("kept")
    return tmp_path


def test_ours_lies_over_the_hosts_and_nothing_of_the_host_changes(host: Path) -> None:
    before = {str(path): path.lstat().st_mtime_ns for path in host.rglob("*")}
    done = subprocess.run([*SPARED, sys.executable, "-c", PROGRAM, str(host)], capture_output=True, text=True, check=False,
                          timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    read_only = "Read-only file system"
    seen = json.loads(done.stdout)
    assert sorted(seen.pop("up")) == ["deep", "hidden", "kept", "linked", "new", "ours", "sub"], "the folder above is the same"
    assert seen == {
        "own": [True, True],
        "host": "cloison-view", "folder": str(host), "here": ["deep", "hidden", "kept", "linked", "new", "ours", "sub"],
        "ours": "our content", "mode": "0o755", "hidden": "ours instead", "kept": "the host's", "sub": "the host's",
        "link": "/etc/hostname", "linked": "kept", "many": ["one", "ours", "two"], "through": "our content",
        "mixed": ["deep", "one", "ours"], "both": "2", "refused": [read_only] * 3,
    }
    assert {str(path): path.lstat().st_mtime_ns for path in host.rglob("*")} == before and socket.gethostname() != "cloison-view"


def test_where_namespaces_are_refused_that_is_said_and_nothing_was_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def call(name: str, *_arguments: object) -> None:
        asked.append(name)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(namespace, "_call", call)
    with pytest.raises(NamespacesRefused, match="Operation not permitted") as caught:
        namespace.enter("name", {"/etc/x": File(b"")})
    assert "cloison doctor" in caught.value.hint and asked == ["unshare", "unshare"], "once more, with users of its own"
    assert os.path.isdir("/proc/self")


@pytest.mark.parametrize(("entries", "possible"), [
    ({"/f/a": Link("x")}, True), ({"/f/a": Link("x"), "/f/b/c": Link("x")}, False), ({"/f/a": Link("x"), "/fb/c": Link("x")}, True),
])
def test_a_layer_holds_what_lies_in_its_folder_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entries: dict[str, Link], possible: bool,
) -> None:
    mounts: list[tuple[object, ...]] = []
    monkeypatch.setattr(namespace, "_OURS", str(tmp_path / "ours"))
    monkeypatch.setattr(namespace, "_mount", lambda *arguments: mounts.append(arguments))
    assert namespace._overlay("/f", entries) is possible
    assert [arguments[:3] for arguments in mounts] == [("overlay", "/f", "overlay")] * possible
    assert not possible or os.listdir(tmp_path / "ours" / "f") == ["a"]

"""Services that the host offers to qubes."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.errors import CloisonError
from cloison.qrexec.host import host_service
from cloison.qrexec.host.services import appmenus, host_repos, repos, updates
from cloison.values import QubeName
from cloison.wire import filecopy as wire

SHIPPED = Path(host_service.SHIPPED)


def run(service: str, *arguments: str, root: Path, source: str = "work", data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """As the warden runs it."""
    environment = {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}", "CLOISON_ROOT": str(root),
                   "QREXEC_REMOTE_DOMAIN": source}
    words = [str(SHIPPED / service), *arguments]
    return subprocess.run(words, env=environment, input=data, capture_output=True, check=False, timeout=PATIENCE)


@pytest.mark.parametrize("service", ["qubes.GetDate", "qubes.GetRandomizedTime", "qubes.SyncAppMenus", "qubes.repos.List",
                                     "qubes.repos.Enable", "qubes.repos.Disable", "qubes.ReceiveUpdates"])
def test_it_ships_and_can_be_executed(service: str) -> None:
    assert os.access(SHIPPED / service, os.X_OK)


def test_randomized_time_is_near_and_not_the_time(tmp_path: Path) -> None:
    import time

    said = {run("qubes.GetRandomizedTime", root=tmp_path).stdout for _ in range(3)}
    assert len(said) == 3
    for text in said:
        assert re.fullmatch(rb"\d+\.\d{9}\n", text)
        assert abs(float(text) - time.time()) < 400


def test_without_qubesd_the_date_is_the_hosts(tmp_path: Path) -> None:
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00\n", run("qubes.GetDate", root=tmp_path).stdout)
    assert len(run("qubes.GetDate", "nanoseconds", root=tmp_path).stdout) == 36


@pytest.mark.parametrize("service", ["qubes.SyncAppMenus", "qubes.ReceiveUpdates"])
@pytest.mark.parametrize("source", ["work", "", "../x"])
def test_without_qubesd_nothing_is_taken(tmp_path: Path, service: str, source: str) -> None:
    result = run(service, root=tmp_path, source=source)
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"Traceback" not in result.stderr


# -- menus -------------------------------------------------------------------------------------------------------------------


def templates(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "work" / appmenus.TEMPLATES).iterdir()}


def test_menus_are_replaced_as_a_whole(tmp_path: Path) -> None:
    name = QubeName("work")
    appmenus.store(str(tmp_path), name, {"a.desktop": {"Name": "A", "Exec": "a"}, "b.desktop": {"Name": "B", "Exec": "b"}})
    assert set(templates(tmp_path)) == {"a.desktop", "b.desktop"}
    (tmp_path / "work/templates.dead").mkdir()
    (tmp_path / "work/templates.dead.tmp").symlink_to("templates.dead")
    appmenus.store(str(tmp_path), name, {"c.desktop": {"Name": "C", "Exec": "c"}})
    assert templates(tmp_path) == {"c.desktop": b"[Desktop Entry]\nVersion=1.0\nType=Application\nExec=c\nName=C\n"}
    assert len(os.listdir(tmp_path / "work")) == 2


def test_menus_go_with_their_qube_and_what_a_dead_qubesd_left_goes_at_its_start(tmp_path: Path) -> None:
    from tests.daemon.test_quotas import with_app

    from cloison.daemon.app import App
    from cloison.daemon.fake import ask
    from cloison.daemon.recovery import bring_up

    async def scenario(app: App) -> None:
        folder = os.path.join(app.parts.paths.data, "appmenus")
        for name in ("work", "tpl", "gone"):
            appmenus.store(folder, QubeName(name), {"a.desktop": {"Name": "A", "Exec": "a"}})
        assert not (await ask(app, "admin.vm.Remove", "work")).failure
        assert sorted(os.listdir(folder)) == ["gone", "tpl"]
        await bring_up(app)
        assert os.listdir(folder) == ["tpl"]

    with_app(tmp_path, scenario)


# -- repositories ------------------------------------------------------------------------------------------------------------


def test_without_a_file_the_hosts_own_repositories_are_shown_and_not_switched(tmp_path: Path) -> None:
    result = run("qubes.repos.List", root=tmp_path)
    assert result.returncode == 0
    rows = [row.split(b"\0") for row in result.stdout.split(b"\n") if row]
    assert rows == [[part.encode() for part in (one, name, state)] for one, state, name in host_repos.listed()]
    (tmp_path / "config").mkdir()
    for one in [row[0].decode() for row in rows] or ["x"]:
        assert run("qubes.repos.Enable", one, root=tmp_path).returncode == 1
    assert list((tmp_path / "config").iterdir()) == []


def test_the_hosts_own_repositories(tmp_path: Path) -> None:
    apt, yum = tmp_path / "etc/apt/sources.list.d", tmp_path / "etc/yum.repos.d"
    assert host_repos.listed(str(tmp_path)) == []
    apt.mkdir(parents=True)
    yum.mkdir()
    (tmp_path / "etc/apt/sources.list").write_text(
        "deb [arch=amd64 signed-by=/k] http://one stable main # x\n#deb http://off a b\ndeb-src http://s a b\n")
    (apt / "vendor name.list").write_text("deb http://two \x1b sid\n")
    (apt / "debian.sources").write_text(
        "# comment\nTypes: deb\nURIs: http://three\nSuites: a\n b\nComponents: main\n\n\n"
        "Types: deb deb-src\nURIs: http://four\nEnabled: No\n\nTypes: deb-src\nURIs: http://five\n")
    (apt / "gone.sources").symlink_to("nowhere")
    (apt / "old.list.disabled").write_text("deb http://six a b\n")
    (yum / "f.repo").write_text("[base]\nname=Base packages\n[extra]\nenabled=0\n")
    assert host_repos.listed(str(tmp_path)) == [
        ("sources-1", "enabled", "http://one stable main"), ("vendor-name-1", "enabled", "http://two _ sid"),
        ("debian-1", "enabled", "http://three a b main"), ("debian-2", "disabled", "http://four"),
        ("f-1", "enabled", "Base packages"), ("f-2", "disabled", "extra")]


def test_repositories_are_listed_and_switched(tmp_path: Path) -> None:
    file = tmp_path / "config" / repos.FILE
    file.parent.mkdir()
    file.write_text("# ours\nmain enabled Main packages\nextra disabled Extra\n")
    listed = run("qubes.repos.List", root=tmp_path).stdout
    assert listed == b"main\0Main packages\0enabled\nextra\0Extra\0disabled"
    assert run("qubes.repos.Enable", "extra", root=tmp_path).stdout == b"ok\n"
    assert run("qubes.repos.Disable", "main", root=tmp_path).stdout == b"ok\n"
    assert run("qubes.repos.Disable", "../x", root=tmp_path).returncode == 1
    assert [(one.id, one.state) for one in repos.load(str(file))] == [("main", "disabled"), ("extra", "enabled")]


@pytest.mark.parametrize("line", ["x", "x on Name", "a/b enabled Name", "x enabled"])
def test_a_broken_list_is_told(tmp_path: Path, line: str) -> None:
    (tmp_path / "list").write_text(line + "\n")
    with pytest.raises(CloisonError):
        repos.load(str(tmp_path / "list"))


# -- updates -----------------------------------------------------------------------------------------------------------------


def stream(*names: bytes, kind: int = wire.REGULAR, mode: int = 0o644) -> bytes:
    return b"".join(wire.Entry(name, kind | mode, 4).encode() + b"good" for name in names) + wire.END


@pytest.fixture
def verifier(tmp_path: Path) -> str:
    """Finds good what does not hold the word `bad`."""
    path = tmp_path / "rpmkeys"
    path.write_text('#!/bin/sh\nfor last; do :; done\ngrep -q bad "$last" && exit 1\necho "$last: digests signatures OK"\n')
    path.chmod(0o755)
    return str(path)


def take(folder: Path, verifier: str, data: bytes) -> tuple[int, wire.Result]:
    source, sink = os.pipe()
    reader, writer = os.pipe()
    os.write(sink, data)
    os.close(sink)
    try:
        status = updates.take(str(folder), verifier, source, writer)
        result = wire.decode_result(os.read(reader, wire.ANSWER_MAX), ended=True)
    finally:
        for fd in (source, reader, writer):
            os.close(fd)
    assert result is not None
    return status, result


@pytest.mark.parametrize("mode", [0o644, 0o777, 0o600])
def test_signed_packages_are_kept_with_a_mode_of_ours(tmp_path: Path, verifier: str, mode: int) -> None:
    folder = tmp_path / "updates"
    folder.mkdir()
    assert take(folder, verifier, stream(b"one-1.0.rpm", b"two~2.rpm", mode=mode))[0] == 0
    assert {path.name: path.stat().st_mode & 0o7777 for path in folder.iterdir()} == {"one-1.0.rpm": 0o600, "two~2.rpm": 0o600}


@pytest.mark.parametrize("data", [
    stream(b"a.deb"), stream(b"a.rpm", b".x.rpm"), stream(b"a b.rpm"), stream(b"a.rpm").replace(b"good", b"bad!")])
def test_qsb_067_nothing_counts_before_its_signature_is_checked(tmp_path: Path, verifier: str, data: bytes) -> None:
    folder = tmp_path / "updates"
    folder.mkdir()
    with pytest.raises(updates.BadPackage):
        take(folder, verifier, data)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("data", [
    wire.Entry(b"d", wire.FOLDER | 0o755).encode() + wire.END, stream(b"../a.rpm"), stream(b"a.rpm")[:-1],
    stream(*(b"%d.rpm" % number for number in range(updates.FILES_MAX + 1)))])
def test_refused_streams_leave_nothing(tmp_path: Path, verifier: str, data: bytes) -> None:
    folder = tmp_path / "updates"
    folder.mkdir()
    file = tmp_path / "stream"
    file.write_bytes(data)
    source, null = os.open(file, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
    assert updates.take(str(folder), verifier, source, null) != 0
    os.close(source)
    os.close(null)
    assert os.listdir(folder) == []

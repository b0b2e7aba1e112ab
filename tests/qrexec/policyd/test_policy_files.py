"""Policy on disk: what counts as a file, who takes whose place, and that no change is missed."""
from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from tests.qrexec.policy_place import Place

from cloison.policy.parse import MAX_FILE, PolicySyntaxError, Root
from cloison.policy.rules import Rules
from cloison.qrexec.policyd import policy_files
from cloison.qrexec.policyd.policy_files import SHIPPED, FolderReader, LivePolicy, folders, load
from cloison.runtime import inotify


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def first(rules: Rules) -> str:
    return str(rules.for_service("test.S")[0]) if rules.for_service("test.S") else ""


def test_the_shipped_files_count_unless_one_takes_their_place(place: Place) -> None:
    reader = FolderReader(folders(place.paths))
    assert reader.place(Root.MAIN, "90-default.policy") == os.path.join(SHIPPED, "90-default.policy")
    assert load(place.paths).for_service("qubes.Filecopy")
    place.write("", "90-default.policy")
    assert not load(place.paths).for_service("qubes.Filecopy")
    assert reader.place(Root.MAIN, "90-default.policy") == str(place.user / "90-default.policy")
    (place.user / "include/admin-local-ro").write_text("mgmt @anyvm allow target=dom0")
    assert load(place.paths).for_service("admin.vm.List")


def test_which_folders_may_be_missing(tmp_path: Path) -> None:
    """The user's own never; others if one of them is there, for files below them too."""
    user, shipped = tmp_path / "user", tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "include").mkdir()
    (shipped / "include" / "x").write_text("")
    (shipped / "50-x.policy").write_text("")
    reader = FolderReader({Root.MAIN: (str(user), str(shipped))})
    with pytest.raises(FileNotFoundError):
        reader.names(Root.MAIN, ".")
    user.mkdir()
    assert reader.names(Root.MAIN, ".") == ["50-x.policy"]
    assert reader.names(Root.MAIN, "include") == ["x"]
    with pytest.raises(FileNotFoundError):
        reader.names(Root.MAIN, "other")
    (user / "other").mkdir()
    assert reader.names(Root.MAIN, "other") == []
    (user / "40-y.policy").write_text("")
    shutil.rmtree(shipped)
    assert reader.names(Root.MAIN, ".") == ["40-y.policy"]
    (user / "include").write_text("no folder")
    with pytest.raises(OSError):
        reader.names(Root.MAIN, "include")


def test_what_is_looked_at_is_watched_before(tmp_path: Path) -> None:
    """So that whatever appears later is seen: also the folder of a file that is not there."""
    watched: list[str] = []
    user, shipped = tmp_path / "user", tmp_path / "shipped"
    user.mkdir()
    shipped.mkdir()
    (shipped / "x").write_text("text")
    reader = FolderReader({Root.MAIN: (str(user), str(shipped))}, watched.append)
    assert reader.content(Root.MAIN, "x") == b"text" and reader.place(Root.MAIN, "x") == str(shipped / "x")
    assert watched[0] == str(user) and watched[1].startswith("/proc/self/fd/")
    watched.clear()
    reader.names(Root.MAIN, ".")
    assert [os.path.normpath(each) for each in watched] == [str(user), str(shipped)]


def test_the_runtime_folder_wins(place: Place) -> None:
    place.write("test.S * a b deny", "40-x.policy")
    (place.runtime / "40-x.policy").write_text("test.S * a b allow")
    assert first(load(place.paths)) == "test.S * a b allow"


def test_what_is_no_file_is_no_policy(place: Place) -> None:
    (place.user / "50-folder.policy").mkdir()
    (place.user / ".50-hidden.policy").write_text("wrong")
    (place.user / "50-old.policy.rpmnew").write_text("wrong")
    os.mkfifo(place.user / "50-pipe.policy")                 # would block whoever opens it
    place.write("test.S * a b allow", "target")
    (place.user / "50-link.policy").symlink_to("target")
    assert first(load(place.paths)) == "test.S * a b allow"


@pytest.mark.parametrize("folder", ["user", "runtime"])
def test_a_missing_folder_makes_the_policy_invalid(place: Place, folder: str) -> None:
    path: Path = getattr(place, folder)
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(PolicySyntaxError) as error:
        load(place.paths)
    assert error.value.kind == "folder"


def test_what_can_not_be_read_makes_the_policy_invalid(place: Place) -> None:
    for name, make in {
        "50-dangling.policy": lambda path: path.symlink_to("nothing"),
        "50-large.policy": lambda path: path.write_bytes(b"#" * (MAX_FILE + 1)),
        "50-pipe.policy": lambda path: path.write_text("!include pipe"),
    }.items():
        make(place.user / name)
        if name == "50-pipe.policy":
            os.mkfifo(place.user / "pipe")
        with pytest.raises(PolicySyntaxError):
            load(place.paths)
        (place.user / name).unlink()
    load(place.paths)


def test_a_dangling_link_is_named_and_a_shipped_file_does_not_stand_in_for_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy_files, "RETRY", -1.0)
    target, shipped = tmp_path / "elsewhere.policy", "90-default.policy"
    (place.user / shipped).symlink_to(target)
    live = LivePolicy(folders(place.paths))
    try:
        with pytest.raises(PolicySyntaxError, match=f"{shipped} can't be read: .*link to {target}, which does not exist"):
            live.rules()
        target.write_text("test.S * a b deny")
        assert first(live.rules()) == "test.S * a b deny"
        target.unlink()
        with pytest.raises(PolicySyntaxError):
            live.rules()
    finally:
        live.close()


def test_too_many_names(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_files, "MAX_NAMES", 3)
    for number in range(4):
        place.write("", f"{number}.policy")
    with pytest.raises(PolicySyntaxError):
        load(place.paths)


# -- changes -------------------------------------------------------------------------------------------------------------


def test_every_kind_of_change_is_seen(place: Place, tmp_path: Path) -> None:
    live = LivePolicy(folders(place.paths))
    outside = tmp_path / "outside"
    outside.write_text("test.S * a b allow")
    included = place.user / "include/mine"
    steps = [
        (lambda: place.write("test.S * a a allow"), "test.S * a a allow"),
        (lambda: (place.user / "30-user.policy").open("a").close(), "test.S * a a allow"),
        (lambda: place.write("!include-service test.S * include/mine\n!include include/other", "20.policy"), None),
        (lambda: included.write_text("a b ask"), None),
        ((place.user / "include/other").touch, "test.S * a b ask"),
        (lambda: included.write_text("a c ask"), "test.S * a c ask"),
        (lambda: os.replace(_new(tmp_path, "a d ask"), included), "test.S * a d ask"),
        (included.unlink, None),
        ((place.user / "20.policy").unlink, "test.S * a a allow"),
        (lambda: (place.user / "10.policy").symlink_to(outside), "test.S * a b allow"),
        (lambda: outside.write_text("test.S * a b deny"), "test.S * a b deny"),
        ((place.user / "10.policy").unlink, "test.S * a a allow"),
        (lambda: place.write(f"!include {outside}", "10.policy"), "test.S * a b deny"),
        (lambda: outside.write_text("test.S * a b ask"), "test.S * a b ask"),
        (lambda: os.replace(_new(tmp_path, "test.S * a c ask"), outside), "test.S * a c ask"),
        (lambda: place.user.rename(place.user.with_name("elsewhere")), None),
    ]
    try:
        for number, (change, wanted) in enumerate(steps):
            change()
            try:
                assert first(live.rules()) == wanted, number
            except PolicySyntaxError:
                assert wanted is None, number
    finally:
        live.close()


def _new(folder: Path, text: str) -> Path:
    path = folder / "new"
    path.write_text(text)
    return path


def test_reading_again_and_again_keeps_nothing_open(place: Place) -> None:
    policy = LivePolicy(folders(place.paths))
    policy.rules()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        place.write(f"test.S * a b{number} allow")
        assert first(policy.rules()) == f"test.S * a b{number} allow"
    assert len(os.listdir("/proc/self/fd")) == before
    policy.close()
    policy.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_half_a_file_never_counts(place: Place) -> None:
    """Who rewrites a file in place truncates it first: a call in between still meets the old rules."""
    place.write("test.S * a b deny")
    live = LivePolicy(folders(place.paths))
    try:
        assert first(live.rules()) == "test.S * a b deny"
        with open(place.user / "30-user.policy", "w") as file:
            assert first(live.rules()) == "test.S * a b deny"
            file.write("test.S * a b allow")
            file.flush()
            assert first(live.rules()) == "test.S * a b deny"
        assert first(live.rules()) == "test.S * a b allow"
    finally:
        live.close()


def test_what_did_not_change_is_not_read_again(place: Place) -> None:
    live = LivePolicy(folders(place.paths))
    try:
        rules = live.rules()
        assert live.rules() is rules
        place.write("# x")
        assert live.rules() is not rules
    finally:
        live.close()


def test_without_watches_every_call_reads_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, path: str, mask: int) -> None:
            raise OSError(24, "no more watches")

    monkeypatch.setattr(inotify, "Watch", Full)
    live = LivePolicy(folders(place.paths))
    rules = live.rules()
    assert live.rules() is not rules
    live.close()


def test_a_change_while_reading_is_seen_by_the_next_call(place: Place) -> None:
    """Changes all the time from another thread: what is seen after the last one is the last one."""
    live = LivePolicy(folders(place.paths))

    def change() -> None:
        for number in range(200):
            (place.user / "30-user.policy").write_text(f"test.S +{number} a b allow")

    writer = threading.Thread(target=change)
    writer.start()
    try:
        while writer.is_alive():
            live.rules()
        writer.join()
        assert first(live.rules()) == "test.S +199 a b allow"
    finally:
        live.close()

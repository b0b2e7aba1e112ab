"""Making and cloning qubes, against the real qubesd: what a kill leaves half made never starts; a failure leaves nothing."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cloison.cli import qvm_clone, qvm_create
from cloison.client import create as creating
from cloison.client.connection import Connection, Pending
from cloison.client.create import Creation, clone, create
from cloison.client.domains import features, get_properties, list_qubes, tags
from cloison.errors import BadRequest, CloisonError

DROP = b"action=drop\n"


class Killed(BaseException):
    """The tool is no more."""


class Mortal(Connection):
    """Dies at the call of that number, and sends none after it. `fails`: this method fails instead, each time."""

    def __init__(self, real: Connection, dies: int = 10_000, fails: str = "") -> None:
        super().__init__(real.paths)
        self.dies, self.fails, self.calls = dies, fails, list[str]()

    def begin(self, dest: str, method: str, argument: str = "", payload: bytes = b"", **options: bool) -> Pending:
        self.calls.append(f"{method}+{argument}")
        if len(self.calls) >= self.dies:
            raise Killed
        if self.fails and self.calls[-1].startswith(self.fails):
            raise CloisonError("no")
        return super().begin(dest, method, argument, payload, **options)


@pytest.fixture
def source(real: Connection) -> Connection:
    """`work` may connect to nothing, and has something of everything."""
    for method, argument, payload in (
        ("firewall.Set", "", DROP), ("property.Set", "netvm", b""), ("property.Set", "memory", b"500"), ("tag.Set", "mine", b""),
        ("property.Set", "template_for_dispvms", b"True"), ("feature.Set", "menu-items", b"x"), ("notes.Set", "", b"a note"),
    ):
        real.call("work", f"admin.vm.{method}", argument, payload)
    return real


def is_like_work(connection: Connection, name: str) -> bool:
    """In all that counts."""
    def settings(qube: str) -> object:
        prefixed = {key: prop.value for key, prop in get_properties(connection, qube).items()
                    if not prop.default and key not in ("name", "qid", "uuid", "dispid")}
        said = connection.call(qube, "admin.vm.firewall.Get"), connection.call(qube, "admin.vm.notes.Get")
        return prefixed, features(connection, qube), set(tags(connection, qube)), said

    return settings(name) == settings("work")


def starts(connection: Connection, name: str) -> str:
    """Empty if it does, else why not."""
    try:
        connection.call(name, "admin.vm.Start")
    except CloisonError as error:
        return str(error)
    connection.call(name, "admin.vm.Kill")
    return ""


def walk(real: Connection, name: str, do: Callable[[Connection], object], whole: Callable[[], bool]) -> None:
    """Killed at each call in turn, until it lives to the end."""
    number, killed = 0, True
    while killed:
        number += 1
        killed = False
        try:
            do(Mortal(real, number))
        except Killed:
            killed = True
        if name in list_qubes(real):
            reason = starts(real, name)
            if killed and not whole():
                assert "has not finished making it; remove it with qvm-remove" in reason, number
            elif not killed:
                assert reason == "" and whole()
            real.call(name, "admin.vm.Remove")
        else:
            assert killed
        assert number < 200
    assert number > 2


def test_a_clone_that_is_killed_is_whole_or_never_starts(source: Connection) -> None:
    wanted = Creation("copy", "AppVM", "red", "tpl")
    walk(source, "copy", lambda connection: clone(connection, "work", wanted), lambda: is_like_work(source, "copy"))


def test_qvm_clone_and_qvm_create_say_who_has_not_finished(source: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool, words in ((qvm_clone, ["work", "copy"]), (qvm_create, ["-l", "red", "-t", "tpl", "--prop", "netvm=", "copy"])):
        number = 0
        while "copy" not in list_qubes(source):
            number += 1
            connection = Mortal(source, number)
            monkeypatch.setattr("cloison.cli.tool.Connection", lambda connection=connection, **_: connection)
            with pytest.raises(Killed):
                tool.main(words)
        assert starts(source, "copy").startswith(f"copy may not be started: {tool.PROG} has not finished making it")
        source.call("copy", "admin.vm.Remove")


@pytest.mark.parametrize("words", [
    ["--prop", "netvm=", "--prop", "memory=600"], ["--class", "StandaloneVM"], ["--class", "StandaloneVM", "--prop", "netvm="]])
def test_a_creation_that_is_killed_is_whole_or_never_starts(
    source: Connection, monkeypatch: pytest.MonkeyPatch, words: list[str],
) -> None:
    def run(connection: Connection) -> None:
        monkeypatch.setattr("cloison.cli.tool.Connection", lambda **_: connection)
        assert qvm_create.main(["-l", "red", "-t", "tpl", *words, "made"]) == 0

    def whole() -> bool:
        found = get_properties(source, "made")
        return "--prop" not in words or (found["netvm"].value == "" and not found["netvm"].default and
                                         ("memory=600" not in words or found["memory"].value == "600"))

    walk(source, "made", run, whole)


@pytest.mark.parametrize("fails", [
    "admin.vm.property.Set+memory", "admin.vm.firewall.Set", "admin.vm.tag.Set", "admin.vm.feature.Set", "admin.vm.notes.Set",
    "admin.vm.volume.CloneTo", "admin.vm.firewall.Get", "admin.vm.feature.Remove"])
def test_a_clone_that_fails_leaves_nothing(source: Connection, fails: str) -> None:
    with pytest.raises(CloisonError, match=r"^no$"):
        clone(Mortal(source, fails=fails), "work", Creation("copy", "AppVM", "red", "tpl"))
    assert "copy" not in list_qubes(source)


def test_what_can_not_be_copied_may_be_told_instead(source: Connection) -> None:
    told: list[CloisonError] = []
    clone(Mortal(source, fails="admin.vm.notes.Set"), "work", Creation("copy", "AppVM", "red", "tpl"), complain=told.append)
    assert [str(error) for error in told] == ["no"] and starts(source, "copy") == ""


def test_one_that_can_not_be_removed_again_is_named_and_does_not_start(source: Connection) -> None:
    class Stuck(Mortal):
        def begin(self, dest: str, method: str, argument: str = "", payload: bytes = b"", **options: bool) -> Pending:
            if method == "admin.vm.Remove":
                raise CloisonError("the disk is broken")
            return super().begin(dest, method, argument, payload, **options)

    with pytest.raises(CloisonError, match=r"^no; and copy could not be removed again: the disk is broken\. It does not"):
        clone(Stuck(source, fails="admin.vm.notes.Set"), "work", Creation("copy", "AppVM", "red", "tpl"))
    assert "has not finished" in starts(source, "copy")


def test_what_restricts_is_copied_first(source: Connection) -> None:
    connection = Mortal(source)
    clone(connection, "work", Creation("copy", "AppVM", "red", "tpl"))
    said = [call for call in connection.calls if "Set" in call or "Clone" in call or "Remove" in call]
    assert said[:2] == ["admin.vm.firewall.Set+", "admin.vm.property.Set+netvm"]
    assert said[-1] == "admin.vm.feature.Remove+prohibit-start" and said[-2].startswith("admin.vm.volume.CloneTo")


def test_where_it_may_connect_to_is_said_before_all_other_properties(source: Connection) -> None:
    source.call("work", "admin.vm.property.Set", "default_dispvm", b"")
    source.call("work", "admin.vm.tag.Set", "created-by-somebody")
    connection = Mortal(source)
    clone(connection, "work", Creation("copy", "AppVM", "red", "tpl"), skip_volumes=("private",))
    properties = [call.removeprefix("admin.vm.property.Set+") for call in connection.calls if "property.Set+" in call]
    assert sorted(properties[:2]) == ["default_dispvm", "netvm"] and len(properties) == len(set(properties)) > 3
    assert not {"name", "qid", "uuid", "dispid", "template", "label", "installed_by_rpm"} & set(properties)
    assert not [call for call in connection.calls if "tag.Set+created-by" in call] and "admin.vm.tag.Set+mine" in connection.calls
    assert not [call for call in connection.calls if "Clone" in call], "the volume was to be left out"
    assert "created-by-somebody" not in tags(source, "copy")


def test_of_preloaded_disposables_only_their_number_is_copied(source: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"preload-dispvm": "disp1 disp2", "preload-dispvm-max": "3", "preload-dispvm-delay": "1", "prohibit-start": "x",
            "mine": ""}
    monkeypatch.setattr(creating, "features", lambda *_: said)
    calls = creating._settings(source, "work", creating._raise)
    assert [call[1:] for call in calls if "feature" in call[0]] == [("preload-dispvm-max", "3"), ("mine", "")]


def test_a_source_that_may_not_start_has_a_copy_that_may_not(source: Connection) -> None:
    source.call("work", "admin.vm.feature.Set", "prohibit-start", b"for a reason")
    clone(source, "work", Creation("copy", "AppVM", "red", "tpl"))
    assert starts(source, "copy") == "copy may not be started: for a reason"


def test_a_named_disposable_can_be_cloned_and_keeps_its_own_number(source: Connection) -> None:
    create(source, Creation("disp", "DispVM", "red", "work"))
    clone(source, "disp", Creation("other", "DispVM", "red", "work"))
    numbers = [get_properties(source, name)["dispid"].value for name in ("disp", "other")]
    assert numbers[0] != numbers[1]
    source.call("other", "admin.vm.property.Set", "dispid", numbers[0].encode())     # as Qubes OS's own tool does
    assert get_properties(source, "other")["dispid"].value == numbers[1]
    with pytest.raises(CloisonError):
        source.call("other", "admin.vm.property.Set", "dispid", b"4711")


def test_a_qubesd_that_does_not_know_the_mark_is_told_by_a_feature(source: Connection) -> None:
    class Older(Mortal):
        def begin(self, dest: str, method: str, argument: str = "", payload: bytes = b"", **options: bool) -> Pending:
            if b"unfinished=" in payload:
                raise BadRequest("no such word")
            return super().begin(dest, method, argument, payload, **options)

    wanted = Creation("copy", "AppVM", "red", "tpl")
    number = 0
    while True:
        number += 1
        try:
            clone(Older(source, number), "work", wanted)
            break
        except Killed:
            if "prohibit-start" in (features(source, "copy") if "copy" in list_qubes(source) else {}):
                assert "qvm-clone has not finished making it" in starts(source, "copy")
            if "copy" in list_qubes(source):
                source.call("copy", "admin.vm.Remove")
    assert starts(source, "copy") == ""


@pytest.mark.parametrize(("words", "status", "sentence"), [
    (["--prop", "memory=0"], 2, "setting property memory: "), (["--prop", "nosuch=1"], 2, "setting property nosuch: ")])
def test_qvm_create_makes_all_that_was_asked_for_or_nothing(
    source: Connection, capsys: pytest.CaptureFixture[str], words: list[str], status: int, sentence: str,
) -> None:
    assert qvm_create.main(["-l", "red", "-t", "tpl", *words, "made"]) == status
    said = capsys.readouterr().err
    assert said.startswith(f"qvm-create: error: {sentence}") and "; made is not made\n" in said
    assert "made" not in list_qubes(source)


def test_a_root_that_can_not_be_filled_leaves_nothing(source: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise OSError("it can't be read")

    monkeypatch.setattr(qvm_create, "import_volume", fail)
    image = tmp_path / "image"
    image.write_bytes(bytes(512))
    assert qvm_create.main(["-C", "StandaloneVM", "-l", "red", "--root-move-from", str(image), "made"]) == 3
    assert "importing the root volume: it can't be read; made is not made" in capsys.readouterr().err
    assert "made" not in list_qubes(source) and image.exists()


def test_no_word_of_a_creation_reads_as_another(source: Connection) -> None:
    for wanted in (Creation("made", "AppVM", "red pool=x"), Creation("made", "AppVM", "red", pools={"private": "x y"})):
        with pytest.raises(CloisonError):
            create(source, wanted)
    with pytest.raises(CloisonError, match="tool"):
        create(source, Creation("made", "AppVM", "red", "tpl"), unfinished="a b")
    with pytest.raises(BadRequest):
        source.call("dom0", "admin.vm.Create.AppVM", "tpl", b"name=made label=red unfinished=")
    assert "made" not in list_qubes(source) and creating.Making.mark == ""


@pytest.mark.parametrize("pools", ["pool=linux-kernel", "pool:private=linux-kernel", "pool:volatile=linux-kernel"])
@pytest.mark.parametrize("klass", ["AppVM", "DispVM"])
def test_no_qube_is_made_in_the_pool_of_kernels(source: Connection, pools: str, klass: str) -> None:
    template = "tpl" if klass == "AppVM" else "work"
    with pytest.raises(CloisonError, match="pool linux-kernel holds kernels, no volumes of qubes"):
        source.call("dom0", f"admin.vm.CreateInPool.{klass}", template, f"name=made label=red {pools}".encode())
    assert "made" not in list_qubes(source)

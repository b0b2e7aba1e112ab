"""The packer: what it sends, and receivers that answer early, wrongly, rudely or not at all."""
from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.filecopy.support import Done, copy, ended, packer

from cloison.qrexec.filecopy import pack, progress
from cloison.wire import filecopy as wire


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with a bit of everything that can be copied."""
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    (top / "big").write_bytes(os.urandom(3_000_001))
    (top / "a/empty").touch(mode=0o600)
    (top / "a/b/é 漢").write_text("unicode")
    (top / "a/b/link").symlink_to("../empty")
    (top / "a").chmod(0o500)
    (tmp_path / "in").mkdir()
    return top


def same(one: Path, other: Path) -> bool:
    def files(top: Path) -> dict[str, bytes]:
        return {str(path.relative_to(top)): path.read_bytes() if path.is_file() else b"" for path in top.rglob("*")}

    return files(one) == files(other)


def test_a_tree_is_the_same_on_the_other_side(tree: Path, tmp_path: Path) -> None:
    assert copy([str(tree)], tmp_path / "in") == (Done(0, ""), Done(0, ""))
    arrived = tmp_path / "in/top"
    assert same(tree, arrived)
    assert os.readlink(arrived / "a/b/link") == "../empty"
    for path in tree.rglob("*"):
        here, there = path.lstat(), (arrived / path.relative_to(tree)).lstat()
        assert (here.st_mode, here.st_mtime_ns) == (there.st_mode, there.st_mtime_ns)
    (arrived / "a").chmod(0o700)
    (tree / "a").chmod(0o700)


def test_many_small_files(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "in").mkdir()
    for number in range(1000):
        (tmp_path / "top" / str(number)).write_text(str(number))
    assert copy([str(tmp_path / "top")], tmp_path / "in")[0].status == 0
    assert same(tmp_path / "top", tmp_path / "in/top")


@pytest.mark.parametrize(("argument", "split"), [
    (b"/a/b", (b"/a", b"b")), (b"/a/b/", (b"/a", b"b")), (b"b", (b".", b"b")), (b"./b", (b".", b"b")), (b"/b", (b"/", b"b")),
    (b"../b", (b"..", b"b")), (b"a/b//", (b"a", b"b"))])
def test_each_argument_is_sent_relative_to_its_folder(argument: bytes, split: tuple[bytes, bytes]) -> None:
    assert pack.split(argument) == split


def test_the_folder_we_are_in_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pack.split(b".") == (os.fsencode(tmp_path.parent), os.fsencode(tmp_path.name))
    assert pack.split(b"..")[1] == os.fsencode(tmp_path.parent.name)
    with pytest.raises(pack.CopyFailed):
        pack.split(b"/")


@pytest.mark.parametrize("name", ["missing", "a/missing"])
def test_what_is_not_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    sent, received = copy([str(tmp_path / name)], tmp_path / "in")
    assert sent.status == 1
    assert "No such file" in sent.errors
    assert received.status == errno.EREMOTEIO


def test_an_existing_file_is_named(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "in/top").mkdir()
    (tmp_path / "in/top/big").touch()
    sent, received = copy([str(tree)], tmp_path / "in")
    assert (sent.status, received.status) == (1, errno.EEXIST)
    assert 'error: "top/big" exists already' in sent.errors


def test_links_can_be_left_out(tree: Path, tmp_path: Path) -> None:
    assert copy(["--ignore-symlinks", "--", str(tree)], tmp_path / "in")[0].status == 0
    assert not (tmp_path / "in/top/a/b/link").is_symlink()
    (tmp_path / "in/top/a").chmod(0o700)
    (tree / "a").chmod(0o700)


def test_progress_is_told(tree: Path, tmp_path: Path) -> None:
    sent, _ = copy([str(tree)], tmp_path / "in", PROGRESS_TYPE="console", FILECOPY_TOTAL_BYTES="3000010")
    assert sent.errors.startswith("sent 2.9 of 2.9 MiB, ")
    assert sent.errors.endswith(" MiB/s  \n")
    (tree / "a").chmod(0o700)


def test_progress_as_numbers() -> None:
    reader, writer = os.pipe()
    numbers = progress.Numbers(writer)
    for sent in (1, 14 << 20, 20 << 20, 31 << 20):
        numbers(sent)
    numbers.done(32 << 20)
    assert [int(number) for number in os.read(reader, 1000).split()] == [1, 20 << 20, 32 << 20]
    os.close(reader)
    with pytest.raises(SystemExit):
        numbers.done(33 << 20)
    os.close(writer)


# -- surveys ---------------------------------------------------------------------------------------------------------------


def test_a_survey_counts_and_names_what_is_unsafe(tree: Path) -> None:
    survey = pack.Survey()
    survey.look(os.fsencode(tree))
    assert (survey.size, survey.unsafe, survey.skipped) == (3_000_008, [], [])
    for number in range(9):
        (tree / f"a\x1b{number}").touch()
    os.mkfifo(tree / "pipe")
    survey = pack.Survey()
    survey.look(os.fsencode(tree))
    assert len(survey.unsafe) == pack.Survey.SHOWN
    assert survey.skipped == [b"top/pipe"]
    assert pack.quote(survey.unsafe[0]).startswith('"a\\x1b')


@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", "../big/.."])
def test_a_link_that_would_be_refused_is_known_before(tree: Path, target: str) -> None:
    (tree / "bad").symlink_to(target)
    with pytest.raises(pack.CopyFailed) as caught:
        pack.Survey().look(os.fsencode(tree))
    assert "--ignore-symlinks" in caught.value.hint


# -- rude receivers ----------------------------------------------------------------------------------------------------------


def against(answer: bytes, files: list[Path], *, read: int = 1 << 30, before: bool = False) -> Done:
    """A packer whose receiver reads at most `read` bytes, says `answer` (before or after that) and hangs up."""
    ours, theirs = socket.socketpair()
    with ours:
        sending = packer(theirs, *map(str, files))
        theirs.close()
        if before:
            ours.sendall(answer)
        while read > 0 and (piece := ours.recv(min(read, 1 << 16))):
            read -= len(piece)
            if piece.endswith(wire.END):
                break
        if not before:
            ours.sendall(answer)
        ours.shutdown(socket.SHUT_WR)
        done = ended(sending)
    return done


@pytest.fixture
def big(tmp_path: Path) -> Path:
    (tmp_path / "f").write_bytes(bytes(5_000_000))
    return tmp_path / "f"


def test_an_early_answer_ends_the_sending(big: Path) -> None:
    """Nobody reads any more, and still the sender ends."""
    done = against(wire.Result(errno.ENOSPC, 0, b"f").encode(), [big], read=1000)
    assert done.status == 1
    assert 'No space left on device, at "f"' in done.errors


def test_an_answer_before_anything_was_read(big: Path) -> None:
    done = against(wire.Result(errno.EEXIST, 0, b"f").encode(), [big], read=0, before=True)
    assert '"f" exists already' in done.errors


def test_an_early_good_answer_is_no_success(big: Path) -> None:
    assert against(wire.Result(0, 0, b"f").encode(), [big], read=1000).status == 1


def test_a_wrong_checksum(big: Path) -> None:
    done = against(wire.Result(0, 12345, b"f").encode(), [big])
    assert done.status == 1
    assert "checksums differ" in done.errors


def test_no_answer_at_all(big: Path) -> None:
    """What carried the call says why; we only do not call it a success."""
    assert against(b"", [big]) == Done(1, "")
    assert against(b"short", [big]) == Done(1, "")


def test_qsb_087_the_receivers_name_can_not_drive_the_terminal(big: Path) -> None:
    done = against(wire.Result(errno.EILSEQ, 0, b'\x1b]52;c;evil\x07"\n' * 50).encode(), [big])
    assert done.status == 1
    assert "\x1b" not in done.errors
    assert "allow-all-names" in done.errors


@pytest.mark.parametrize("code", [1, errno.EINVAL, errno.ENOLINK, errno.EREMOTEIO, wire.ENDED_EARLY, 2**32 - 1, 99999])
def test_each_error_has_a_sentence(big: Path, code: int) -> None:
    done = against(wire.Result(code, 0, b"f").encode(), [big])
    assert done.status == 1
    assert done.errors.startswith("qfile-agent: error: the receiver ")


@given(st.binary(max_size=60))
def test_any_answer_is_survived(untrusted: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(untrusted)
        ours.shutdown(socket.SHUT_WR)
        sender = pack.Sender(theirs.fileno(), theirs.fileno())
        with pytest.raises(pack.CopyFailed):
            sender.finish()


def test_a_file_that_shrinks_is_no_success(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    path = tmp_path / "f"
    path.write_bytes(b"x" * 4_000_000)
    with ours, theirs:
        sender = pack.Sender(theirs.fileno(), theirs.fileno(), lambda sent: os.truncate(path, 10))
        reader = packer_reader(ours)
        with pytest.raises(pack.CopyFailed, match="became shorter"):
            sender.send(os.fsencode(path))
        theirs.shutdown(socket.SHUT_RDWR)
        os.waitpid(reader, 0)


def packer_reader(stream: socket.socket) -> int:
    """A child that reads all there is."""
    if pid := os.fork():
        return pid
    try:
        while stream.recv(1 << 20):
            pass
    finally:
        os._exit(0)


@pytest.mark.parametrize("gone", ["file", "link"])
def test_the_file_that_failed_is_named_and_not_what_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    """Deep below what the person named; it can't be read when its turn comes, or its link's end."""
    (tmp_path / "top/deep").mkdir(parents=True)
    (tmp_path / "top/deep/file").write_bytes(b"x")
    (tmp_path / "top/deep/link").symlink_to("file")

    def refuse(path: bytes, *_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)
    argument = os.fsencode(tmp_path / "top")
    expected = f'^"top/deep/{gone}": Permission denied$'
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = pack.Sender(theirs.fileno(), theirs.fileno())
        if gone == "link":
            monkeypatch.setattr(os, "readlink", refuse)
            with pytest.raises(pack.CopyFailed, match=expected):
                pack.Survey().look(argument)
        else:
            monkeypatch.setattr(pack.Sender, "_send_file", lambda _self, _parent, path: refuse(path))
        with pytest.raises(pack.CopyFailed, match=expected):
            sender.send(argument)


def test_a_folder_that_can_not_be_read(tmp_path: Path) -> None:
    """Deeper than a path may be long."""
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=place)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = deeper
    os.close(place)
    with pytest.raises(pack.CopyFailed, match="File name too long"):
        pack.Survey().look(os.fsencode(tmp_path / ("d" * 200)))


def test_times_and_modes_of_entries(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch(mode=0o640)
    os.utime(path, ns=(1, 2))
    entry = pack._entry(b"f", path.stat())
    assert (stat.S_IMODE(entry.mode), entry.accessed, entry.modified, entry.size) == (0o640, 1, 2, 0)

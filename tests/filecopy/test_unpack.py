"""The unpacker against senders that want out of their folder, or into what is there."""
from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from tests.filecopy.support import SOURCE, answer_of, ended, file, folder, link, receive, unpacker

from cloison.qrexec.filecopy import unpack
from cloison.qrexec.filecopy import unpacker as unpacker_module
from cloison.runtime import inotify
from cloison.wire import filecopy as wire


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder to receive into; beside it lies what must stay as it is."""
    (tmp_path / "secret").write_text("untouched")
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def _nothing_outside(tmp_path: Path) -> object:
    """After each test: what lies beside the folder is what lay there before."""
    yield
    outside = {path.name for path in tmp_path.iterdir()} - {"in", "moved"}
    if outside:
        assert outside == {"secret"}
        assert (tmp_path / "secret").read_text() == "untouched"


def names(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


def test_a_tree_arrives_with_modes_times_and_links(place: Path) -> None:
    entry = wire.Entry(b"d/f", wire.REGULAR | 0o751, 5, accessed=10**18 + 1, modified=10**18 + 2)
    result, done = receive(folder(b"d") + entry.encode() + b"hello" + link(b"d/l", b"f") + folder(b"d", 0o500) + wire.END, place)
    assert (result.code, done.status, result.name) == (0, 0, b"d")
    status = (place / "d/f").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns, (place / "d/f").read_bytes()) == (0o751, 10**18 + 2, b"hello")
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o500
    assert os.readlink(place / "d/l") == "f"
    (place / "d").chmod(0o700)


def test_zeros_take_no_space_and_change_nothing(place: Path) -> None:
    zeros, text = bytes(8 << 20), b"\0text\0"
    contents = [zeros, zeros + text, text + zeros, zeros + text + zeros, b"\0", text + bytes(1), bytes(4097) + b"x"]
    data = b"".join(file(str(number).encode(), content) for number, content in enumerate(contents)) + wire.END
    result, done = receive(data, place)
    assert (result.code, done.status) == (0, 0)
    for number, content in enumerate(contents):
        assert (place / str(number)).read_bytes() == content, number
        assert (place / str(number)).stat().st_blocks * 512 < 3 << 20, number


@pytest.mark.parametrize("length", [1, 3, 4096, 5000])
def test_pieces_of_any_length_make_the_file(tmp_path: Path, length: int) -> None:
    """Whichever of them is all zeros, the last one too."""
    content = bytes(4096) + b"a" + bytes(9000) + b"\0b\0" + bytes(5000)
    root = os.open(tmp_path, os.O_RDONLY)
    descriptors = unpack.open_descriptors()
    try:
        made = unpack.Unpacker(root, descriptors, unpack.Options())
        made.entry(wire.Entry(b"secret", wire.REGULAR | 0o600, len(content)))
        for start in range(0, len(content), length):
            made.content(memoryview(content[start:start + length]))
    finally:
        os.close(descriptors)
        os.close(root)
    assert (tmp_path / "secret").read_bytes() == content
    (tmp_path / "secret").write_text("untouched")


def test_the_answer_has_the_checksum_of_all_that_came(place: Path) -> None:
    from zlib import crc32

    data = folder(b"d") + file(b"d/f", b"x" * 3_000_000) + wire.END
    assert receive(data, place)[0].crc == crc32(data)


@pytest.mark.parametrize("path", [b"../evil", b"a/../../evil", b"..", b".", b"/tmp/evil", b"//evil", b"a//b", b"", b"a/"])
@pytest.mark.parametrize("options", [(), ("--allow-all-names",)])
def test_qsb_014_paths_out_of_the_folder(place: Path, path: bytes, options: tuple[str, ...]) -> None:
    result, done = receive(folder(b"a") + file(path, b"evil") + wire.END, place, *options)
    assert (result.code, done.status) == (errno.EILSEQ, errno.EILSEQ)
    assert names(place) == {"a"}


@pytest.mark.parametrize("target", [b"/etc", b"..", b"../..", b"x/../..", b"../in/../.."])
def test_links_out_of_the_folder(place: Path, target: bytes) -> None:
    result, _ = receive(folder(b"d") + link(b"d/l", target) + file(b"d/l/evil", b"evil") + wire.END, place)
    assert (result.code, result.name) == (errno.ENOLINK, target)
    assert names(place) == {"d"}


def test_a_link_at_the_top_is_refused(place: Path) -> None:
    assert receive(link(b"l", b"d") + wire.END, place)[0].code == errno.ENOLINK


def test_no_file_goes_through_a_link_that_was_let_in(place: Path) -> None:
    """Neither one of this stream, nor one that leads outside because the receiver allows that."""
    stream = folder(b"d") + folder(b"d/e") + link(b"d/l", b"e") + file(b"d/l/evil", b"evil") + wire.END
    assert receive(stream, place)[0].code == errno.ELOOP
    stream = link(b"out", b"..") + file(b"out/secret2", b"evil") + wire.END
    assert receive(stream, place, "--allow-unsafe-symlinks")[0].code == errno.ELOOP
    assert names(place) == {"d", "d/e", "d/l", "out"}


def test_a_folder_entry_does_not_change_what_a_link_points_at(place: Path) -> None:
    (place / "d").mkdir(mode=0o711)
    (place / "l").symlink_to("d")
    assert receive(folder(b"l", 0o777) + wire.END, place)[0].code == errno.ELOOP
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o711


def test_qsb_014_a_folder_swapped_for_a_link_under_us(place: Path, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receiving = unpacker(theirs, "", str(place))
        theirs.close()
        ours.sendall(folder(b"d") + file(b"d/one", b"1"))
        wait_for(place / "d/one")
        (place / "d").rename(tmp_path / "moved")
        (place / "d").symlink_to(tmp_path)
        ours.sendall(file(b"d/secret", b"evil") + file(b"d/two", b"2") + wire.END)
        result = answer_of(ours)
        ended(receiving)
    assert (result.code, result.name) == (errno.ELOOP, b"d/secret")


def test_qsb_014_a_folder_moved_out_under_us(place: Path, tmp_path: Path) -> None:
    """What was moved away is out of reach: the path no longer leads there."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receiving = unpacker(theirs, "", str(place))
        theirs.close()
        ours.sendall(folder(b"a") + folder(b"a/b") + file(b"a/b/one", b"1"))
        wait_for(place / "a/b/one")
        (place / "a/b").rename(tmp_path / "moved")
        ours.sendall(file(b"a/b/two", b"2") + wire.END)
        result = answer_of(ours)
        ended(receiving)
    assert result.code == errno.ENOENT
    assert names(tmp_path / "moved") == {"one"}


def wait_for(path: Path) -> None:
    """Until it is there."""
    if not path.parent.exists():
        wait_for(path.parent)
    assert inotify.wait_for(str(path))


def test_an_existing_file_is_never_overwritten(place: Path) -> None:
    (place / "f").write_text("mine")
    result, done = receive(file(b"f", b"evil") + wire.END, place)
    assert (result.code, result.name, done.status) == (errno.EEXIST, b"f", errno.EEXIST)
    assert (place / "f").read_text() == "mine"


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to("../secret"),
                                  os.mkfifo, lambda path: path.mkdir()])
def test_whatever_has_the_name_keeps_it(place: Path, make: object) -> None:
    assert callable(make)
    make(place / "f")
    assert receive(file(b"f", b"evil") + wire.END, place)[0].code == errno.EEXIST


def test_the_same_name_twice(place: Path) -> None:
    assert receive(file(b"f", b"one") + file(b"f", b"two") + wire.END, place)[0].code == errno.EEXIST
    assert (place / "f").read_bytes() == b"one"


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_device_nodes_pipes_and_sockets(place: Path, kind: int) -> None:
    assert receive(wire.Entry(b"dev", kind | 0o666).encode() + wire.END, place)[0].code == errno.EINVAL
    assert names(place) == set()


def test_issue_8332_a_name_unfit_to_be_shown_needs_an_option_and_no_detour(place: Path) -> None:
    """Lesson 23: over-strict names push people to worse habits; the sender is told of the option, see test_pack."""
    stream = file(b"a\x1b[2Jb", b"x") + wire.END
    result, done = receive(stream, place)
    assert result.code == errno.EILSEQ
    assert "\x1b" not in done.errors
    assert receive(stream, place, "--allow-all-names")[0].code == 0
    assert names(place) == {"a\x1b[2Jb"}


@pytest.mark.parametrize("header", [
    wire.HEADER.pack(wire.NAME_MAX + 1, 0o100644, 0, 0, 0, 0, 0), wire.HEADER.pack(2**32 - 1, 0o100644, 0, 0, 0, 0, 0),
    wire.HEADER.pack(4, 0o120777, 2**64 - 1, 0, 0, 0, 0) + b"d/l\0"])
def test_huge_lengths_are_refused_at_once(place: Path, header: bytes) -> None:
    assert receive(folder(b"d") + header, place)[0].code == errno.ENAMETOOLONG


def test_a_huge_file_leaves_nothing_when_the_stream_ends(place: Path) -> None:
    header = wire.Entry(b"f", wire.REGULAR | 0o644, 2**62).encode()
    result, _ = receive(header + b"x" * 100_000, place)
    assert (result.code, result.name) == (wire.ENDED_EARLY, b"f")
    assert names(place) == set()


@pytest.mark.parametrize("cut", [0, 1, 31, 32, 33])
def test_an_early_end_is_told(place: Path, cut: int) -> None:
    result, done = receive((folder(b"abcd") + wire.END)[:cut], place)
    assert result.code == (wire.ENDED_EARLY if cut else errno.EREMOTEIO)
    assert done.status == result.code & 255


def test_no_end_marker_after_whole_entries(place: Path) -> None:
    result, _ = receive(file(b"f", b"x"), place)
    assert result.code == errno.EREMOTEIO
    assert names(place) == {"f"}


def test_a_sender_that_reads_no_answer_does_not_keep_us(place: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        receiving = unpacker(theirs, "", str(place))
    ours.sendall(file(b"..", b"") * 10)
    ours.close()
    assert ended(receiving).status in (1, errno.EILSEQ)


def test_limits(place: Path) -> None:
    root, descriptors = os.open(place, os.O_RDONLY), unpack.open_descriptors()
    for data, options, code in (
        (file(b"a", b"12345") + wire.END, unpack.Options(max_bytes=5), 0),
        (file(b"b", b"123456") + wire.END, unpack.Options(max_bytes=5), errno.EDQUOT),
        (file(b"c", b"123") + file(b"d", b"123") + wire.END, unpack.Options(max_bytes=5), errno.EDQUOT),
        (folder(b"x") + link(b"x/l", b"123456") + wire.END, unpack.Options(max_bytes=5), errno.EDQUOT),
        (file(b"e") + file(b"f") + wire.END, unpack.Options(max_files=2), 0),
        (file(b"g") + file(b"h") + wire.END, unpack.Options(max_files=1), errno.EDQUOT),
        (folder(b"y") + wire.END, unpack.Options(folders=False), errno.EINVAL),
        (folder(b"z") + link(b"z/l", b"a") + wire.END, unpack.Options(links=False), errno.EINVAL),
    ):
        source, sink = os.pipe()
        os.write(sink, data)
        os.close(sink)
        assert unpack.receive(source, root, descriptors, options).code == code
        os.close(source)
    os.close(root)
    os.close(descriptors)


def test_waiting_for_space_looks_again_until_there_is_enough(place: Path) -> None:
    class Enough(Exception):
        pass

    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise Enough

    root, descriptors = os.open(place, os.O_RDONLY), unpack.open_descriptors()
    unpacking = unpack.Unpacker(root, descriptors, unpack.Options(margin=2**62, pause=pause))
    with pytest.raises(Enough):
        unpacking.entry(wire.Entry(b"f", wire.REGULAR | 0o600))
    unpacking.close()
    os.close(root)
    os.close(descriptors)
    assert pauses == [unpack.SPACE_PAUSE] * 3
    assert names(place) == set()


def test_a_file_system_without_nameless_files(place: Path) -> None:
    """Then the file has its name and mode 0 until it is whole."""
    root, descriptors = os.open(place, os.O_RDONLY), unpack.open_descriptors()
    unpacking = unpack.Unpacker(root, descriptors, unpack.Options())
    unpacking._tmpfile = False
    unpacking.entry(wire.Entry(b"f", wire.REGULAR | 0o640, 2))
    assert stat.S_IMODE((place / "f").stat().st_mode) == 0
    unpacking.content(memoryview(b"ok"))
    assert ((place / "f").read_bytes(), stat.S_IMODE((place / "f").stat().st_mode)) == (b"ok", 0o640)
    with pytest.raises(FileExistsError):
        unpacking.entry(wire.Entry(b"f", wire.REGULAR | 0o640))
    unpacking.close()
    os.close(root)
    os.close(descriptors)


def test_killed_in_the_middle_of_a_file_it_leaves_no_part(place: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receiving = unpacker(theirs, "", str(place))
        theirs.close()
        ours.sendall(file(b"one", b"1") + wire.Entry(b"two", wire.REGULAR | 0o644, 10**6).encode() + b"half")
        wait_for(place / "one")
        receiving.kill()
        ended(receiving)
    assert names(place) == {"one"}


def test_it_sees_nothing_but_its_folder_and_has_no_privileges(place: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receiving = unpacker(theirs, "", str(place))
        theirs.close()
        ours.sendall(file(b"one"))
        wait_for(place / "one")
        status = Path(f"/proc/{receiving.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert Path(f"/proc/{receiving.pid}/root/one").exists()
        ours.sendall(wire.END)
        assert answer_of(ours).code == 0
        ended(receiving)


def test_an_ordinary_user_is_shut_in_too(place: Path) -> None:
    """In a user namespace: no complaint on standard error that there is none."""
    setpriv = shutil.which("setpriv")
    assert setpriv, "setpriv is part of util-linux"
    code = ("import sys; sys.path.insert(0, sys.argv.pop(1)); "
            "from cloison.qrexec.filecopy.unpacker import main; sys.exit(main(sys.argv))")
    other = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory() as reachable:
        os.chmod(reachable, 0o777)  # noqa: S103 for that other user
        done = subprocess.run([*other, "/usr/bin/python3", "-ISc", code, SOURCE, "", reachable],
                              input=file(b"f", b"x") + wire.END, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert Path(reachable, "f").stat().st_uid == (65534 if other else os.getuid())


@pytest.mark.parametrize("arguments", [["--nonsense"], ["1", "2", "3"], ["x"], ["-w", "99999999999"], ["4294967296999", "/tmp"],
                                       ["-w", "2147483648"], ["-w", "12a"], ["-"], ["12345678901"]])
def test_wrong_usage(place: Path, arguments: list[str]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert ended(unpacker(theirs, *arguments)).status == 1


@pytest.mark.parametrize(("words", "margin", "verbose", "rest"), [
    ([], 0, False, []), (["-w"], 1, False, []), (["-w", "0"], 0, False, []), (["-w", "2147483647"], 2**31 - 1, False, []),
    (["--wait-for-space", "7", "--verbose"], 7, True, []), (["-v", "1", "/x"], 0, True, ["1", "/x"]),
    (["", "/x"], 0, False, ["", "/x"]),
    (["1234567890"], 0, False, ["1234567890"]), (["1", "-w", "-v"], 1, True, ["1"]),
])
def test_words_of_the_command_line(words: list[str], margin: int, verbose: bool, rest: list[str]) -> None:
    options, told, left = unpacker_module._arguments(words)
    assert (options.margin, told, left) == (margin, verbose, rest)
    assert not options.all_names and not options.any_target


@pytest.mark.parametrize(("words", "names", "targets"), [
    (["--allow-all-names"], True, False), (["--allow-unsafe-symlinks"], False, True),
    (["--allow-all-names", "--no-allow-all-names"], False, False), (["--no-allow-unsafe-symlinks"], False, False),
    (["--allow-unsafe-symlinks", "--no-allow-unsafe-symlinks"], False, False),
])
def test_what_the_command_line_lets_in(words: list[str], names: bool, targets: bool) -> None:
    options, _, _ = unpacker_module._arguments(words)
    assert (options.all_names, options.any_target) == (names, targets)


def test_the_old_order_of_arguments(place: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receiving = unpacker(theirs, str(os.getuid()), str(place), "-v", "-w")
        theirs.close()
        ours.sendall(file(b"one") + wire.END)
        assert answer_of(ours).code == 0
        assert ended(receiving).errors == "one\n"


@pytest.mark.parametrize("source", ["", "../../etc", "a/b", "a b", "x" * 32])
def test_the_source_must_be_a_name(tmp_path: Path, place: Path, source: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = ended(unpacker(theirs, HOME=str(place), QREXEC_REMOTE_DOMAIN=source))
    assert done.status == 1
    assert "can't prepare the folder" in done.errors


def test_it_goes_to_qubesincoming_of_the_source(place: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receiving = unpacker(theirs, HOME=str(place), QREXEC_REMOTE_DOMAIN="work")
        theirs.close()
        ours.sendall(file(b"one", b"1") + wire.END)
        assert answer_of(ours).code == 0
        ended(receiving)
    for path in (place / "QubesIncoming", place / "QubesIncoming/work"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert (place / "QubesIncoming/work/one").read_bytes() == b"1"

"""Bounds, failures half way and what is left after them: the parts of the client that no usual call reaches."""
from __future__ import annotations

import asyncio
import io
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_qubesd import FakeQubesd, FakeWarden, Refused, listening
from tests.patience import PATIENCE

from cloison.client import aio, connection, files, importing
from cloison.client.connection import PARALLEL, Connection, NoDaemon, OutOfReach
from cloison.client.create import Creation, create
from cloison.client.disposables import Disposable
from cloison.client.domains import Property, feature, get_all_properties, parse_properties, parse_property, parse_qubes
from cloison.client.ends import File, Queue
from cloison.client.failures import TooMuchOutput, TransferFailed
from cloison.client.importing import ImportFailed, import_volume
from cloison.client.local import Local
from cloison.client.program import Program
from cloison.errors import BadValue, CloisonError, NoSuchProperty, PeerError
from cloison.wire import admin
from cloison.wire import qrexec as wire


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- calls -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "fits"), [(100, True), (101, False)])
@pytest.mark.parametrize("awaited", [False, True])
def test_a_reply_has_a_bound(qubesd: FakeQubesd, monkeypatch: pytest.MonkeyPatch, size: int, fits: bool, awaited: bool) -> None:
    monkeypatch.setattr(connection, "MAX_REPLY", 100)
    monkeypatch.setattr(aio, "MAX_REPLY", 100)
    content = bytes(size - len(admin.ok()))
    qubesd.answers["admin.vm.List"] = lambda *_: admin.ok(content)

    def call() -> bytes:
        if awaited:
            return asyncio.run(aio.Connection().call("dom0", "admin.vm.List"))
        return Connection().call("dom0", "admin.vm.List")

    if fits:
        assert call() == content
    else:
        with pytest.raises(PeerError, match="too long"):
            call()


def test_many_calls_are_under_way_at_once_but_not_more_than_that(qubesd: FakeQubesd) -> None:
    together, most, now, lock = threading.Barrier(PARALLEL), [0], [0], threading.Lock()

    def answer(_: FakeQubesd, request: admin.Request) -> bytes:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(PATIENCE)
        with lock:
            now[0] -= 1
        if request.argument in ("1", "40"):
            raise Refused("QubesNoSuchPropertyError", request.argument)
        return admin.ok(request.argument.encode())

    qubesd.answers["admin.vm.property.Get"] = answer
    count = 2 * PARALLEL
    found = list(Connection().gather(("work", "admin.vm.property.Get", str(number)) for number in range(count)))
    assert most == [PARALLEL]
    assert [number for number, one in enumerate(found) if isinstance(one, NoSuchProperty)] == [1, 40]
    assert [one for one in found if isinstance(one, bytes)] == [b"%d" % number for number in range(count) if number not in (1, 40)]


def test_a_qube_that_went_away_meanwhile_is_left_out(qubesd: FakeQubesd) -> None:
    assert list(get_all_properties(Connection(), ["work", "gone", "sys-net"])) == ["work", "sys-net"]
    with pytest.raises(CloisonError):
        feature(Connection(), "gone", "x")
    assert feature(Connection(), "work", "x") is None


@pytest.mark.parametrize(("make", "error", "words"), [
    (lambda path: None, NoDaemon, "nothing answers"), (lambda path: path.mkdir(), NoDaemon, "nothing answers"),
    (lambda path: path.symlink_to(path), OutOfReach, "can't be reached"),
])
def test_who_is_not_there_and_what_is_in_the_way_are_told_apart(
    root: Path, make: Callable[[Path], None], error: type[CloisonError], words: str,
) -> None:
    (root / "run").mkdir(exist_ok=True)
    make(root / "run/qubesd.sock")
    before = descriptors()
    with pytest.raises(error, match=words) as caught:
        Connection().call("dom0", "admin.vm.List")
    assert caught.value.hint and descriptors() == before


@pytest.mark.parametrize("reply", [
    "memory default=False type=int", "memory type=int default=False 4", "memory 400", "memory default=True 4", "memory x y z",
])
def test_what_is_no_property_is_refused(reply: str) -> None:
    with pytest.raises(PeerError):
        parse_properties(reply.encode())
    with pytest.raises(PeerError):
        parse_property(reply.partition(" ")[2].encode())


def test_properties_and_qubes_are_read_as_they_are_written() -> None:
    said = (b"a default=True type=int 4\nb default=False type=str x y\\n\\\\n\n"
            b"c default=False type=vm \nd default=False type=bool True\n")
    found = parse_properties(said)
    assert found["a"] == Property("4", "int", True) and found["b"] == Property("x y\n\\n", "str", False)
    assert [one.typed for one in found.values()] == [4, "x y\n\\n", None, True]
    assert [Property("", kind, False).typed for kind in ("int", "bool", "vm", "str")] == [None, None, None, ""]
    assert Property("False", "bool", False).typed is False
    qubes = parse_qubes(b"work class=AppVM state=Paused uuid=u\nold class=AppVM\n")
    assert {name: (qube.state, qube.uuid, qube.running) for name, qube in qubes.items()} == {
        "work": ("Paused", "u", True), "old": ("NA", "", False)}


# -- making ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "unfinished", "call"), [
    (Creation("new", "AppVM", "red"), "", ("admin.vm.Create.AppVM", "", b"name=new label=red")),
    (Creation("new", "AppVM", "red", "debian-12"), "t", ("admin.vm.Create.AppVM", "debian-12", b"name=new label=red unfinished=t")),
    (Creation("new", "AppVM", "red", pool="p"), "", ("admin.vm.CreateInPool.AppVM", "", b"name=new label=red pool=p")),
    (Creation("new", "AppVM", "red", pools={"root": "b", "private": "a"}), "",
     ("admin.vm.CreateInPool.AppVM", "", b"name=new label=red pool:private=a pool:root=b")),
])
def test_a_creation_is_one_call(qubesd: FakeQubesd, wanted: Creation, unfinished: str, call: tuple[str, str, bytes]) -> None:
    for method in ("admin.vm.Create.AppVM", "admin.vm.CreateInPool.AppVM"):
        qubesd.answers[method] = lambda *_: admin.ok()
    create(Connection(), wanted, unfinished=unfinished)
    assert [one[1:] for one in qubesd.calls] == [call]


@pytest.mark.parametrize("wanted", [
    Creation("a b", "AppVM", "red"), Creation("new", "App VM", "red"), Creation("new", "AppVM", ""),
    Creation("new", "AppVM", "r\n"),
    Creation("new", "AppVM", "red", "a b"), Creation("new", "AppVM", "red", pool="p q"),
    Creation("new", "AppVM", "red", pools={"root x": "p"}), Creation("new", "AppVM", "red", pools={"root": "p x=y"}),
])
def test_words_that_could_be_read_otherwise_are_not_sent(qubesd: FakeQubesd, wanted: Creation) -> None:
    with pytest.raises(BadValue):
        create(Connection(), wanted)
    assert qubesd.calls == []


# -- disposables without leases ----------------------------------------------------------------------------------------------


def without_leases(qubesd: FakeQubesd, **fails: str) -> list[str]:
    """Another qubesd. `fails`: calls (`_` for the dot) that do. Returns what is asked for the disposable."""
    qubesd.qubes["disp1"] = {"class": "DispVM", "state": "Halted", "label": "red"}
    asked: list[str] = []

    def answer(_: FakeQubesd, request: admin.Request) -> bytes:
        name = request.method.removeprefix("admin.vm.")
        asked.append(name)
        if name.replace(".", "_") in fails:
            raise Refused("QubesException", fails[name.replace(".", "_")])
        return admin.ok()

    for name in ("property.Set", "Start", "Remove", "Kill"):
        qubesd.answers[f"admin.vm.{name}"] = answer
    qubesd.answers["admin.vm.CreateDisposable"] = lambda *_: admin.ok(b"disp1")
    return asked


@pytest.mark.parametrize(("fails", "asked"), [
    ({"Start": "no memory"}, ["property.Set", "Start", "Remove"]), ({"property_Set": "no memory"}, ["property.Set", "Remove"]),
    ({"Start": "no memory", "Remove": "it is gone"}, ["property.Set", "Start", "Remove"]),
])
def test_a_disposable_that_can_not_be_had_is_removed(qubesd: FakeQubesd, fails: dict[str, str], asked: list[str]) -> None:
    done = without_leases(qubesd, **fails)
    with pytest.raises(CloisonError, match="no memory"):
        Disposable(Connection(), "work", memory=600)
    assert done == asked


def test_a_disposable_that_has_ended_by_itself_is_no_failure(qubesd: FakeQubesd) -> None:
    done = without_leases(qubesd, Kill="it is halted")
    with Disposable(Connection(), "work") as disposable:
        assert disposable.name == "disp1"
    assert done == ["Start", "Kill"]


def test_who_gives_up_while_waiting_gives_the_lease_back(qubesd: FakeQubesd) -> None:
    def gives_up(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Disposable(Connection(), "dom0", gives_up)
    assert qubesd.ended_leases.wait(PATIENCE)


# -- filling a volume --------------------------------------------------------------------------------------------------------

CHUNK = importing._CHUNK


def filled(qubesd: FakeQubesd, folder: Path, said: bytes | None = None) -> tuple[Path, list[tuple[str, bytes]]]:
    """The file that qubesd gives, and what it is told."""
    target, told = folder / "target", []
    target.write_bytes(b"")

    def answer(_: FakeQubesd, request: admin.Request) -> bytes:
        told.append((request.method.rpartition("Import")[2], request.payload))
        size = int(request.payload or b"0") or 2 * CHUNK if told[-1][0] == "Begin" else 0
        return admin.ok((said or f"{size} {target}\n".encode()) if told[-1][0] == "Begin" else b"")

    for name in ("Begin", "End"):
        qubesd.answers[f"internal.vm.volume.Import{name}"] = answer
    return target, told


@pytest.mark.parametrize("data", [b"x", b"x" * CHUNK, b"x" * (CHUNK + 1), bytes(CHUNK) + b"x" * CHUNK + bytes(CHUNK)])
def test_a_volume_gets_exactly_what_was_announced(
    qubesd: FakeQubesd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes,
) -> None:
    target, told = filled(qubesd, tmp_path)
    synced: list[tuple[int, int]] = []
    monkeypatch.setattr(importing.os, "fdatasync", lambda fd: synced.append((os.fstat(fd).st_size, len(told))))
    import_volume(Connection(), "work", "private", io.BytesIO(data), len(data))
    assert told == [("Begin", b"%d" % len(data)), ("End", b"ok")]
    written = target.read_bytes()
    assert written == data[:len(written)] and not any(data[len(written):])       # a hole at the end is qubesd's to make
    assert synced == [(len(written), 1)], "before qubesd is told that it is whole"
    assert target.stat().st_blocks * 512 <= 4096 + len(data.strip(b"\0")), "holes stay holes"


@pytest.mark.parametrize(("data", "size", "words"), [
    (b"xy", 3, "1 bytes shorter"), (b"", 3, "3 bytes shorter"), (b"xyz", 2, "longer"), (b"x" * (CHUNK + 1), CHUNK, "longer"),
    (b"x" * CHUNK, None, "shorter"),
])
def test_what_is_not_as_announced_is_told_to_qubesd_too(
    qubesd: FakeQubesd, tmp_path: Path, data: bytes, size: int | None, words: str,
) -> None:
    _, told = filled(qubesd, tmp_path)
    before = descriptors()
    with pytest.raises(ImportFailed, match=words):
        import_volume(Connection(), "work", "private", io.BytesIO(data), size)
    assert told[1][0] == "End" and told[1][1].startswith(b"fail\n") and words.encode() in told[1][1]
    assert descriptors() == before


def test_nothing_at_all_makes_zeros_where_the_size_is_kept(qubesd: FakeQubesd, tmp_path: Path) -> None:
    target, told = filled(qubesd, tmp_path)
    import_volume(Connection(), "work", "private", io.BytesIO(b""), None)
    assert told == [("Begin", b""), ("End", b"ok")] and target.read_bytes() == b""


@pytest.mark.parametrize("said", [b"x /path\n", b"12\n", b"\n", b"-1 /path\n"])
def test_what_is_no_import_is_refused(qubesd: FakeQubesd, tmp_path: Path, said: bytes) -> None:
    _, told = filled(qubesd, tmp_path, said)
    with pytest.raises(PeerError, match="not an import"):
        import_volume(Connection(), "work", "private", io.BytesIO(b"x"), 1)
    assert len(told) == 1


def test_a_link_is_not_followed(qubesd: FakeQubesd, tmp_path: Path) -> None:
    target, told = filled(qubesd, tmp_path)
    target.unlink()
    target.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"mine")
    with pytest.raises(OSError, match="symbolic links"):
        import_volume(Connection(), "work", "private", io.BytesIO(b"x"), 1)
    assert (tmp_path / "elsewhere").read_bytes() == b"mine" and told[1][0] == "End"


# -- programs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "status"), [
    ("exit 7", 7), ("kill -9 $$", 137), ("true", 0), ('[ "$QREXEC_REMOTE_DOMAIN" = work ]', 0),
])
def test_a_local_command_has_its_status_and_leaves_nothing_open(command: str, status: int) -> None:
    before = descriptors()
    with Local(command, "work") as local:
        assert local.input >= 0 and local.output >= 0
    assert local.wait() == local.wait() == status
    assert descriptors() == before and (local.input, local.output) == (-1, -1)


def test_a_local_command_reads_and_writes_what_the_qube_does() -> None:
    with Local("read line; echo got $line", "work") as local:
        os.write(local.input, b"words\n")
        assert os.read(local.output, 100) == b"got words\n"
    assert local.wait() == 0


@pytest.mark.parametrize("status", [0, 1])
def test_a_file_out_of_a_qube_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int,
) -> None:
    steps: list[str] = []
    rename = os.rename
    (tmp_path / "mine").write_bytes(b"what was there")
    monkeypatch.setattr(files.os, "fsync", lambda fd: steps.append(f"sync {os.fstat(fd).st_size}"))
    monkeypatch.setattr(files.os, "rename", lambda old, new: (steps.append("rename"), rename(old, new))[0])
    monkeypatch.setattr(files, "fsync_dir", steps.append)
    before = descriptors()
    with files.Receiving("work", "/f", tmp_path / "mine", limit=100, user="user", mode=0o640) as receiving:
        assert isinstance(receiving.order.ends.stdout, File)
        receiving.order.ends.stdout.put(b"whole")
        if status:
            with pytest.raises(TransferFailed):
                receiving.keep(status)
        else:
            assert receiving.keep(status) == 5
    assert steps == ([] if status else ["sync 5", "rename", str(tmp_path)])
    assert (tmp_path / "mine").read_bytes() == (b"what was there" if status else b"whole")
    assert os.listdir(tmp_path) == ["mine"] and descriptors() == before


@pytest.mark.parametrize(("size", "fits"), [(10, True), (11, False)])
def test_a_file_has_a_limit(tmp_path: Path, size: int, fits: bool) -> None:
    with open(tmp_path / "file", "wb", buffering=0) as file:
        end = File(file.fileno(), 10)
        end.put(bytes(5))
        if fits:
            end.put(bytes(size - 5))
        else:
            with pytest.raises(TooMuchOutput):
                end.put(bytes(size - 5))
    assert (tmp_path / "file").stat().st_size == (10 if fits else 5)
    assert end.size == size


def test_a_queue_ends_with_the_last_of_its_streams() -> None:
    queue = Queue(2)
    queue.finish()
    assert not queue.ended
    queue.finish()
    assert queue.ended


def test_the_program_sees_the_end_of_its_input_when_it_is_closed(qubesd: FakeQubesd, warden: FakeWarden) -> None:
    """Nobody has to wait for the program for that."""
    seen = threading.Event()

    def agent(channel: socket.socket) -> None:
        channel.sendall(wire.hello(wire.VERSION) + b"".join(wire.data(wire.STDOUT, b"ready")))
        decoder = wire.Decoder(wire.FROM_CALLER)
        while data := channel.recv(4096):
            decoder.feed(data)
            while message := decoder.next_message():
                if isinstance(message, wire.Data) and not message.payload:
                    seen.set()
                    channel.sendall(wire.exit_code(0))
                    return

    warden.script = agent
    with Program(Connection(), "work", "cat") as program:
        assert program.stdout.read() == b"ready"
        program.stdin.close()
        assert seen.wait(PATIENCE)
        assert program.wait(PATIENCE) == 0


def test_a_daemon_that_goes_in_the_middle_leaves_no_descriptor(root: Path) -> None:
    (root / "run").mkdir(exist_ok=True)

    def goes(sock: socket.socket) -> None:
        sock.recv(1)                     # with what it did not read, its end is a reset
        sock.close()

    with listening(root / "run/qubesd.sock", goes):
        before = descriptors()
        for _ in range(3):
            with pytest.raises(NoDaemon):
                Connection().call("dom0", "admin.vm.List", payload=bytes(1 << 15))
        assert descriptors() <= before + 1       # the listener's own, for a moment

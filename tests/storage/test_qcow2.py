"""The qcow2 driver: the contract, and what is its own (files, chains, hostile and damaged images)."""
from __future__ import annotations

import json
import os
import re
import resource
import stat
import struct
import subprocess
import threading
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contracts.pool import DATA, MIB, PRIVATE, ROOT, TEMPLATE, PoolContract, exported, raw_file, session, shows, write

from cloison.errors import StorageError
from cloison.storage import images, qcow2
from cloison.storage.base import DamagedImage, PoolError
from cloison.storage.qcow2 import DEEPEST, SHALLOW, Qcow2Pool


@pytest.fixture
def pool(tmp_path: Path) -> Qcow2Pool:
    pool = Qcow2Pool("qcow2", str(tmp_path / "pool"))
    pool.setup()
    return pool


class TestQcow2Pool(PoolContract):
    pass


def files(pool: Qcow2Pool) -> set[str]:
    """Every file of the pool, below its folder."""
    return {os.path.relpath(os.path.join(folder, name), pool.folder) for folder, _, names in os.walk(pool.folder) for name in names}


def image(pool: Qcow2Pool, name: str) -> Path:
    return Path(pool.folder, "appvms/mail", name)


def test_files_and_modes(pool: Qcow2Pool) -> None:
    pool.create(DATA)
    session(pool, DATA, 1)
    pool.start(DATA)
    assert files(pool) == {f"appvms/mail/data.{end}" for end in ("json", "1.qcow2", "2.qcow2", "3.qcow2")}
    modes = {name: stat.S_IMODE(image(pool, name).stat().st_mode) for name in ("data.1.qcow2", "data.2.qcow2", "data.3.qcow2")}
    assert modes == {"data.1.qcow2": 0o400, "data.2.qcow2": 0o400, "data.3.qcow2": 0o600}
    assert stat.S_IMODE(os.stat(pool.folder).st_mode) == 0o700
    pool.remove(DATA)
    assert files(pool) == set() and not image(pool, "").exists()


def test_a_private_volume_starts_as_an_empty_ext4_shared_by_all(pool: Qcow2Pool) -> None:
    big = replace(PRIVATE, size=2 << 30)
    other = replace(big, vid="appvms/other/private")
    pool.create(big)
    pool.create(other)
    assert pool.usage(big) < 4 * MIB, "holes stay holes"
    path = pool.export_begin(big)
    found = subprocess.run(["dumpe2fs", path], check=True, capture_output=True, text=True).stdout
    assert "Filesystem volume name:   <none>" in found and "Reserved block count:     0" in found
    assert found.count("ITABLE_ZEROED") == len(re.findall(r"^Group \d+:", found, re.M)), "nothing is left for the guest to zero"
    subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)
    pool.export_end(big, path)
    assert image(pool, "private.1.raw").samefile(Path(pool.folder, "appvms/other/private.1.raw"))
    session(pool, big, 1, offset=3 << 29)
    assert shows(pool.start(big), 1, offset=3 << 29)
    assert shows(pool.start(other), 0, offset=3 << 29), "the shared file is never written"
    pool.remove(other)
    pool.remove(big)
    pool.setup()
    assert files(pool) == set(), "a blank that nobody uses goes"


def test_clear_gives_a_private_volume_its_empty_ext4_again(pool: Qcow2Pool) -> None:
    pool.create(PRIVATE)
    session(pool, PRIVATE, 1, offset=1024)
    pool.clear(PRIVATE)
    assert exported(pool, PRIVATE)[1080:1082] == b"\x53\xef"


def test_too_small_for_a_file_system(pool: Qcow2Pool) -> None:
    with pytest.raises(StorageError, match="can't make an empty file system of 512 bytes"):
        pool.create(replace(PRIVATE, size=1))
    assert files(pool) == set()


def test_chains_stay_shallow_and_show_the_same(pool: Qcow2Pool) -> None:
    pool.create(DATA)
    for number in range(1, 3 * SHALLOW):
        session(pool, DATA, number, offset=number * 65536)
        assert len(pool.start(DATA).layers) <= SHALLOW
        pool.discard(DATA)
    content = exported(pool, DATA)
    assert [content[number * 65536] for number in range(1, 3 * SHALLOW)] == list(range(1, 3 * SHALLOW))


def test_little_on_top_of_much_is_merged_late_but_is_merged(pool: Qcow2Pool, tmp_path: Path) -> None:
    pool.import_file(DATA, raw_file(tmp_path, 7, 16 * MIB), format="raw")
    depths = []
    for number in range(1, DEEPEST + 2):
        session(pool, DATA, number)
        depths.append(len(pool.start(DATA).layers))
        pool.discard(DATA)
    assert max(depths) == DEEPEST and min(depths[SHALLOW:]) == 1
    assert exported(pool, DATA)[65536] == 7


def test_merging_leaves_a_running_overlay_valid(pool: Qcow2Pool) -> None:
    pool.create(DATA)
    for number in range(1, SHALLOW + 3):
        source = pool.start(DATA)
        write(source, number)
        pool.stop(DATA)
    dirty = pool.start(DATA)
    write(dirty, 9, offset=65536)
    pool._merge(pool._files(DATA.vid), limit=1)
    assert len(pool.start(DATA).layers) == 1
    assert shows(pool.start(DATA), 9, offset=65536) and shows(pool.start(DATA), SHALLOW + 2)


def test_a_merge_leaves_alone_what_took_the_volumes_place_meanwhile(pool: Qcow2Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works without the lock: a volume of that name, with commits of those numbers, may be another one by then."""
    def grow(value: int) -> None:
        pool.create(DATA)
        for number in range(SHALLOW - 1):
            session(pool, DATA, value + number)

    def replaced(step: str) -> None:
        if step == "storage:merge:flat":
            pool.remove(DATA)
            grow(100)

    grow(1)
    monkeypatch.setattr(qcow2, "point", replaced)
    before = pool._files(DATA.vid).existing()
    pool._merge(pool._files(DATA.vid), limit=1)
    found = pool._files(DATA.vid).existing()
    assert found.serial != before.serial and found.current == before.current
    assert exported(pool, DATA)[:1] == bytes([100 + SHALLOW - 2])
    assert not [name for name in files(pool) if "tmp" in name]


def test_clones_that_cross_take_their_locks_in_one_order(pool: Qcow2Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each could wait for the other one for ever."""
    taken: list[str] = []
    locked = images.locked

    def recorded(folder: str) -> AbstractContextManager[None]:
        taken.append(os.path.basename(folder))
        return locked(folder)

    other = replace(DATA, vid="appvms/zebra/data")
    pool.create(DATA)
    pool.create(other)
    monkeypatch.setattr(images, "locked", recorded)
    pool.clone(other, DATA)
    pool.clone(DATA, other)
    assert taken == ["mail", "zebra"] * 2


def test_a_failing_merge_does_not_fail_the_stop(
    pool: Qcow2Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path,
) -> None:
    fake = tmp_path / "bin" / "bwrap"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho no namespaces here >&2\nexit 1\n")
    fake.chmod(0o755)
    pool.create(DATA)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    for number in range(SHALLOW + 2):
        session(pool, DATA, number)
    assert "no namespaces here" in caplog.text
    with pytest.raises(StorageError, match="no namespaces here"):
        pool.export_begin(DATA)
    monkeypatch.undo()
    assert exported(pool, DATA)[:1] == bytes([SHALLOW + 1])
    assert not [name for name in files(pool) if "export" in name or "tmp" in name]


def test_image_format_confusion(pool: Qcow2Pool, tmp_path: Path) -> None:
    """A guest writes a qcow2 header, naming a host file, into its raw disk: the disk stays raw (QSB-078)."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"S" * MIB)
    evil = tmp_path / "evil.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(evil), "1M"], check=True)
    header = evil.read_bytes()
    path = tmp_path / "import.raw"
    path.write_bytes(header.ljust(MIB, b"\0"))
    pool.import_file(DATA, str(path), format="raw")
    source = pool.start(DATA)
    assert [layer.format for layer in source.layers] == ["raw"]
    write(source, 1, offset=MIB // 2)
    pool.stop(DATA)
    for _ in range(SHALLOW + 1):
        session(pool, DATA, 1, offset=MIB // 2)
    content = exported(pool, DATA)
    assert content[:512] == header[:512] and b"SSSS" not in content


def test_an_image_that_names_another_file_is_refused(pool: Qcow2Pool, tmp_path: Path) -> None:
    """As a guest that broke out of its QEMU could leave it (QSB-021): the headers are those that we made, or else nothing."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"S" * MIB)
    pool.create(DATA)
    top = pool.start(DATA).top
    assert top is not None
    for options in (["-b", str(secret), "-F", "raw"], ["-o", f"data_file={secret}"]):
        os.unlink(top.path)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, top.path, "1M"], check=True)
        for use in (pool.stop, pool.start):
            with pytest.raises(DamagedImage, match="refers to what Cloison never puts there"):
                use(DATA)
    with pytest.raises(StorageError, match="damaged disk image"):
        pool.import_file(replace(DATA, vid="appvms/x/data"), top.path, format="qcow2")
    assert exported(pool, DATA) == bytes(DATA.size)
    pool.discard(DATA)
    assert shows(pool.start(DATA), 0)


def test_import_of_a_qcow2_file(pool: Qcow2Pool, tmp_path: Path) -> None:
    made = tmp_path / "made.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw_file(tmp_path, 6), str(made)], check=True)
    pool.import_file(DATA, str(made), format="qcow2")
    assert exported(pool, DATA) == b"\x06" * MIB and not made.exists()


@pytest.mark.parametrize("format", ["", "vmdk", "RAW"])
def test_import_refuses_other_formats(pool: Qcow2Pool, tmp_path: Path, format: str) -> None:
    path = raw_file(tmp_path, 1)
    with pytest.raises(StorageError, match="neither raw nor qcow2"):
        pool.import_file(DATA, path, format=format)
    assert os.path.exists(path) and files(pool) == set()


def test_import_refuses_what_is_no_ordinary_file(pool: Qcow2Pool, tmp_path: Path) -> None:
    link, fifo, empty = tmp_path / "link", tmp_path / "fifo", tmp_path / "empty"
    link.symlink_to(raw_file(tmp_path, 1))
    os.mkfifo(fifo)
    empty.touch()
    for path in (link, fifo, empty, tmp_path, tmp_path / "absent"):
        with pytest.raises(StorageError):
            pool.import_file(DATA, str(path), format="raw")
    assert files(pool) == set()


@pytest.mark.parametrize("damage", [b"", b"QFI\xfb", b"\0" * 200, b"QFI\xfb" + struct.pack(">I", 2) + b"\0" * 200])
def test_a_damaged_overlay_is_neither_used_nor_committed(pool: Qcow2Pool, damage: bytes) -> None:
    pool.create(DATA)
    session(pool, DATA, 1)
    before = pool.commit_id(DATA)
    top = pool.start(DATA).top
    assert top is not None
    Path(top.path).write_bytes(damage)
    for use in (pool.stop, pool.start):
        with pytest.raises(DamagedImage, match=f"volume {DATA.vid} is damaged: image data.3.qcow2: it "):
            use(DATA)
    assert Path(top.path).read_bytes() == damage and pool.commit_id(DATA) == before and pool.is_dirty(DATA)


def test_a_missing_commit_refuses_the_start(pool: Qcow2Pool) -> None:
    pool.create(DATA)
    pool.create(TEMPLATE)
    Path(pool.start(ROOT).layers[0].path).unlink()
    image(pool, "data.1.qcow2").unlink()
    for volume, shown in ((DATA, DATA), (ROOT, TEMPLATE)):
        with pytest.raises(DamagedImage, match=f"volume {shown.vid} is damaged: image {shown.name}.1.qcow2: it is missing"):
            pool.start(volume)
    assert not pool.is_dirty(DATA)


_COMMIT: dict[str, object] = {"id": 1, "format": "qcow2", "base": None, "size": 512, "time": 0}
GOOD: dict[str, object] = {
    "version": 1, "serial": "0" * 16, "size": 512, "last": 1, "current": 1, "revisions": [], "dirty": None, "commits": [_COMMIT],
}
CHANGES: tuple[dict[str, object], ...] = (
    {"version": 3}, {"serial": "x"}, {"serial": 1}, {"size": 0}, {"size": 1 << 60}, {"size": "1"}, {"last": 0}, {"last": True},
    {"current": 2}, {"revisions": [2]}, {"revisions": None}, {"revisions": [{}]}, {"dirty": 1}, {"dirty": 2}, {"dirty": "../x"},
    {"commits": []}, {"commits": [1]}, {"commits": [_COMMIT, _COMMIT]}, {"extra": 1},
    {"commits": [{**_COMMIT, "format": "vmdk"}]}, {"commits": [{**_COMMIT, "base": 1}]},
    {"commits": [{**_COMMIT, "id": "../../x"}]}, {"commits": [{**_COMMIT, "id": -1}]},
)


@pytest.mark.parametrize("record", [
    b"", b"{", b"[]", b"null", b"[" * 5000, b"x" * (2 * MIB), b"{}",
    *(json.dumps({**GOOD, **change}).encode() for change in CHANGES),
])
def test_a_damaged_record_is_an_error_and_nothing_is_swept(pool: Qcow2Pool, record: bytes) -> None:
    pool.create(DATA)
    image(pool, "data.json").write_bytes(record)
    before = files(pool)
    for use in (pool.start, pool.is_dirty, pool.size, pool.create, pool.clear, pool.stop):
        with pytest.raises(StorageError, match=f"can't read the record of volume {DATA.vid}"):
            use(DATA)
    pool.setup()
    assert files(pool) == before
    pool.remove(DATA)
    assert files(pool) == set()


def test_setup_sweeps_only_what_is_its_own(pool: Qcow2Pool) -> None:
    pool.create(DATA)
    left = ["data.9.qcow2", "data.9.raw", "private.1.raw", "data.import.raw", "data.export-00.raw", "data.json.12345678.tmp"]
    foreign = ["firewall.xml", "notes.txt", "data.qcow2", "DATA.1.raw"]
    for name in left + foreign:
        image(pool, name).touch()
    Path(pool.folder, "appvms/stray").touch()
    Path(pool.folder, "appvms/empty").mkdir()
    pool.setup()
    expected = {f"appvms/mail/{name}" for name in ("data.json", "data.1.qcow2", *foreign)}
    assert files(pool) == expected | {"appvms/stray"}


def test_a_disk_that_is_really_full(pool: Qcow2Pool, tmp_path: Path) -> None:
    """A limit on file sizes stands for it: writes fail in the middle."""
    pool.create(DATA)
    session(pool, DATA, 1)
    before, path = files(pool), raw_file(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        for use in (
            lambda: pool.start(DATA), lambda: pool.create(PRIVATE), lambda: pool.create(TEMPLATE), lambda: pool.clear(DATA),
            lambda: pool.import_begin(DATA, MIB), lambda: pool.revert(DATA), lambda: pool.import_file(DATA, path, format="raw"),
        ):
            with pytest.raises(PoolError) as caught:
                use()
            assert caught.value.hint
            assert files(pool) == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.path.exists(path)
    assert shows(pool.start(DATA), 1)


def test_many_at_once(pool: Qcow2Pool) -> None:
    """Creates, starts, stops and removes in parallel, in the same qubes' folders: locks hold, folders come and go."""
    failed: list[BaseException] = []

    def life(number: int) -> None:
        volume = replace(DATA, vid=f"appvms/q{number % 2}/v{number}")
        try:
            for _ in range(5):
                pool.create(volume)
                pool.start(volume)
                pool.stop(volume)
                pool.remove(volume)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=life, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert files(pool) == set() and os.listdir(Path(pool.folder, "appvms")) == []

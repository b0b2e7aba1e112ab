"""What every pool must do: a class that each driver's test file inherits, giving it a `pool` fixture.

Disks are read and written by the real qemu-io over the `DiskSource`, as a warden's QEMU would.
"""
from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.errors import StorageError
from cloison.storage import base
from cloison.storage.base import MAX_SIZE, Kind, Pool, PoolError, VolumeConfig
from cloison.storage.flatten import graph
from cloison.storage.qcow2_image import create_overlay
from cloison.wire.warden import DiskSource, Layer

MIB = 1 << 20
TEMPLATE = VolumeConfig("vm-templates/debian-12/root", "root", Kind.ORIGIN, 16 * MIB)
ROOT = VolumeConfig("appvms/mail/root", "root", Kind.SNAPSHOT, 16 * MIB, source=TEMPLATE.vid)
DATA = VolumeConfig("appvms/mail/data", "data", Kind.ORIGIN, 8 * MIB)
PRIVATE = VolumeConfig("appvms/mail/private", "private", Kind.ORIGIN, 8 * MIB)
VOLATILE = VolumeConfig("appvms/mail/volatile", "volatile", Kind.VOLATILE, 8 * MIB)


def qemu_io(layers: tuple[Layer, ...], *commands: str, read_only: bool = False) -> str:
    """Run qemu-io commands on a chain, bottom first; its output."""
    argv = ["qemu-io", *(["-r"] if read_only else []), "json:" + json.dumps(graph(layers))]
    for command in commands:
        argv += ["-c", command]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 or "Pattern verification failed" in done.stdout, done.stdout + done.stderr
    return done.stdout


def write(source: DiskSource, pattern: int, offset: int = 0, scratch: Path | None = None) -> None:
    """4 KiB of a byte, through the disk that the guest would get; through a temporary overlay in `scratch` if it has none."""
    top = source.top
    if top is None and scratch is not None:
        path = scratch / "overlay"
        path.unlink(missing_ok=True)
        create_overlay(str(path), source.size)
        top = Layer(str(path), "qcow2")
    assert top is not None
    assert "wrote 4096" in qemu_io((*source.layers, top), f"write -P {pattern} {offset} 4k", "flush")


def shows(source: DiskSource, pattern: int, offset: int = 0) -> bool:
    """Whether 4 KiB at the offset hold that byte only."""
    layers = source.layers + ((source.top,) if source.top else ())
    return "Pattern verification failed" not in qemu_io(layers, f"read -P {pattern} {offset} 4k", read_only=True)


def session(pool: Pool, volume: VolumeConfig, pattern: int, offset: int = 0) -> None:
    """Start, write, stop."""
    write(pool.start(volume), pattern, offset)
    pool.stop(volume)


def exported(pool: Pool, volume: VolumeConfig) -> bytes:
    """The committed state."""
    path = pool.export_begin(volume)
    try:
        return Path(path).read_bytes()
    finally:
        pool.export_end(volume, path)


def raw_file(folder: Path, pattern: int, size: int = MIB) -> str:
    path = folder / "import.raw"
    path.write_bytes(bytes([pattern]) * size)
    return str(path)


class PoolContract:
    """Inherit, and define the fixture `pool`: a new, empty pool after `setup`."""

    def test_create_makes_an_empty_volume_once(self, pool: Pool) -> None:
        pool.create(DATA)
        first = pool.commit_id(DATA)
        assert exported(pool, DATA) == bytes(DATA.size)
        assert (pool.revisions(DATA), pool.is_dirty(DATA), pool.size(DATA)) == ([], False, DATA.size)
        session(pool, DATA, 1)
        pool.create(DATA)
        assert exported(pool, DATA)[:1] == b"\x01"
        assert pool.commit_id(DATA) != first

    def test_what_is_written_is_kept_at_stop_and_seen_at_the_next_start(self, pool: Pool) -> None:
        pool.create(DATA)
        source = pool.start(DATA)
        assert source.role == "data" and source.writable and source.size == DATA.size and source.top is not None
        write(source, 0x41)
        assert pool.is_dirty(DATA)
        assert exported(pool, DATA)[:1] == b"\0", "until stop the committed state is that from before the start"
        pool.stop(DATA)
        assert not pool.is_dirty(DATA)
        assert shows(pool.start(DATA), 0x41)

    def test_start_again_goes_on_with_the_dirty_overlay(self, pool: Pool) -> None:
        pool.create(DATA)
        source = pool.start(DATA)
        write(source, 0x42)
        assert pool.start(DATA) == source
        assert shows(pool.start(DATA), 0x42)

    def test_discard_drops_the_session(self, pool: Pool) -> None:
        pool.create(DATA)
        before = pool.commit_id(DATA)
        write(pool.start(DATA), 0x42)
        pool.discard(DATA)
        pool.discard(DATA)
        assert pool.commit_id(DATA) == before and not pool.is_dirty(DATA)
        assert shows(pool.start(DATA), 0)

    @pytest.mark.parametrize("call", ["start", "stop", "discard", "remove"])
    def test_nothing_happens_to_a_volume_while_a_process_has_its_dirty_image_open(
        self, pool: Pool, call: str, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It may be a machine that lives on unseen: it would write to what another one starts from."""
        monkeypatch.setattr(base, "HELD", 0)
        pool.create(DATA)
        top = pool.start(DATA).top
        assert top is not None
        before = pool.commit_id(DATA)
        with open(top.path, "rb"), pytest.raises(StorageError, match="still has its image open") as refused:
            getattr(pool, call)(DATA)
        assert isinstance(refused.value, PoolError) and "End that process" in refused.value.hint
        assert pool.is_dirty(DATA) and pool.commit_id(DATA) == before and os.path.exists(top.path)
        getattr(pool, call)(DATA)

    def test_a_process_that_is_about_to_end_is_waited_for(self, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(base, "HELD", PATIENCE)
        pool.create(DATA)
        top = pool.start(DATA).top
        assert top is not None
        fd = os.open(top.path, os.O_RDWR)
        with ThreadPoolExecutor() as threads:
            stopped = threads.submit(pool.stop, DATA)
            assert wait([stopped], timeout=0.1).not_done
            os.close(fd)
            stopped.result(PATIENCE)
        assert not pool.is_dirty(DATA)

    def test_stop_of_a_volume_that_is_not_started_does_nothing(self, pool: Pool) -> None:
        pool.stop(DATA)
        pool.create(DATA)
        before = pool.commit_id(DATA)
        pool.stop(DATA)
        assert pool.commit_id(DATA) == before

    def test_a_session_that_writes_nothing_makes_no_commit_and_takes_no_revisions_place(self, pool: Pool) -> None:
        pool.create(DATA)
        session(pool, DATA, 1)
        session(pool, DATA, 2, offset=MIB)
        before, revisions = pool.commit_id(DATA), pool.revisions(DATA)
        for _ in range(2):
            source = pool.start(DATA)
            assert shows(source, 1) and shows(source, 2, MIB)
            pool.stop(DATA)
            assert (pool.commit_id(DATA), pool.revisions(DATA), pool.is_dirty(DATA)) == (before, revisions, False)
        assert pool.revisions(DATA), "there is one to be pruned"
        session(pool, DATA, 0, offset=DATA.size - 4096)
        assert pool.commit_id(DATA) != before or exported(pool, DATA)[:1] == b"\x01", "zeros may count as nothing, and lose nothing"
        session(pool, DATA, 3, offset=DATA.size - 4096)
        assert pool.commit_id(DATA) != before
        pool.revert(DATA)
        assert exported(pool, DATA)[MIB:MIB + 1] == b"\x02"

    def test_fewer_revisions_are_kept_where_fewer_are_wanted(self, pool: Pool) -> None:
        many = replace(DATA, revisions_to_keep=3)
        pool.create(many)
        for pattern in (1, 2, 3):
            session(pool, many, pattern)
        for keep in (2, 0):
            pool.start(many)
            pool.stop(replace(DATA, revisions_to_keep=keep))
            assert len(pool.revisions(many)) == keep and exported(pool, many)[:1] == b"\x03"

    def test_what_grew_and_was_not_written_to_stays_grown(self, pool: Pool) -> None:
        pool.create(DATA)
        session(pool, DATA, 1)
        pool.start(DATA)
        pool.resize(DATA, 2 * DATA.size)
        pool.stop(DATA)
        assert pool.size(DATA) == 2 * DATA.size == pool.start(DATA).size

    def test_a_session_worth_no_revision_is_kept_and_pushes_none_out(self, pool: Pool) -> None:
        pool.create(DATA)
        for pattern in (1, 2, 3):
            session(pool, DATA, pattern)
        revisions = pool.revisions(DATA)
        source = pool.start(DATA)
        write(source, 4)
        pool.spare_revisions(DATA)
        pool.spare_revisions(DATA)
        assert pool.start(DATA) == source, "a power loss meanwhile changes nothing about it"
        pool.stop(DATA)
        assert pool.revisions(DATA) == revisions and exported(pool, DATA)[:1] == b"\x04"
        session(pool, DATA, 5)
        pool.revert(DATA)
        assert exported(pool, DATA)[:1] == b"\x04", "the next session is worth one again"

    def test_a_session_that_is_dropped_or_never_was_leaves_no_mark(self, pool: Pool) -> None:
        pool.create(DATA)
        pool.spare_revisions(DATA)
        session(pool, DATA, 1)
        assert len(pool.revisions(DATA)) == 1
        for end in (pool.discard, pool.stop):
            pool.start(DATA)
            pool.spare_revisions(DATA)
            end(DATA)
        session(pool, DATA, 2)
        pool.revert(DATA)
        assert exported(pool, DATA)[:1] == b"\x01"

    def test_a_snapshot_shows_the_source_as_committed_at_its_start_and_saves_nothing(self, pool: Pool, tmp_path: Path) -> None:
        pool.create(TEMPLATE)
        session(pool, TEMPLATE, 1)
        started = pool.start(TEMPLATE)
        write(started, 2)
        source = pool.start(ROOT)
        assert source.writable and source.top is None and source.size == TEMPLATE.size
        assert source.commit == pool.commit_id(ROOT) == pool.commit_id(TEMPLATE)
        assert shows(source, 1)
        write(source, 3, scratch=tmp_path)
        pool.stop(ROOT)
        assert shows(pool.start(ROOT), 1)
        before = pool.commit_id(ROOT)
        pool.stop(TEMPLATE)
        assert pool.commit_id(ROOT) != before, "now the running snapshot is outdated"
        assert shows(pool.start(ROOT), 2)
        assert not pool.is_dirty(ROOT) and pool.revisions(ROOT) == [] and pool.usage(ROOT) == 0

    def test_a_running_snapshot_is_untouched_by_later_commits_of_its_source(self, pool: Pool) -> None:
        pool.create(TEMPLATE)
        session(pool, TEMPLATE, 1)
        held = [os.open(layer.path, os.O_RDONLY) for layer in pool.start(ROOT).layers]
        layers = tuple(Layer(f"/proc/{os.getpid()}/fd/{fd}", layer.format)
                       for fd, layer in zip(held, pool.start(ROOT).layers, strict=True))
        for pattern in range(2, 8):
            session(pool, TEMPLATE, pattern)
        pool.remove(TEMPLATE)
        assert "Pattern verification failed" not in qemu_io(layers, "read -P 1 0 4k", read_only=True)
        for fd in held:
            os.close(fd)

    def test_volatile_and_read_only_disks(self, pool: Pool) -> None:
        assert pool.start(VOLATILE) == DiskSource("volatile", VOLATILE.size)
        pool.create(TEMPLATE)
        readonly = VolumeConfig("appvms/mail/modules", "modules", Kind.READONLY, 0, source=TEMPLATE.vid)
        assert not pool.start(readonly).writable and pool.start(readonly).top is None
        for volume in (VOLATILE, readonly):
            pool.create(volume)
            pool.stop(volume)
            pool.remove(volume)
        assert pool.size(TEMPLATE) == TEMPLATE.size

    def test_the_path_is_that_of_the_image_in_use(self, pool: Pool) -> None:
        pool.create(TEMPLATE)
        pool.create(DATA)
        assert pool.path(VOLATILE) == ""
        committed = pool.path(DATA)
        assert os.path.isfile(committed) and committed.startswith(pool.folder + os.sep)
        source = pool.start(DATA)
        assert source.top is not None and pool.path(DATA) == source.top.path != committed
        assert pool.path(ROOT) == pool.path(TEMPLATE) == pool.start(ROOT).layers[-1].path
        pool.start(TEMPLATE)
        assert pool.path(ROOT) == pool.start(ROOT).layers[-1].path != pool.path(TEMPLATE), "what it shows, not what is written now"

    def test_old_commits_are_kept_as_revisions_and_pruned(self, pool: Pool) -> None:
        keep = VolumeConfig(DATA.vid, "data", Kind.ORIGIN, DATA.size, revisions_to_keep=2)
        pool.create(keep)
        for pattern in range(1, 5):
            session(pool, keep, pattern)
        assert len(pool.revisions(keep)) == 2
        pool.revert(keep, pool.revisions(keep)[0])
        assert exported(pool, keep)[:1] == b"\x02"
        pool.revert(keep)
        assert exported(pool, keep)[:1] == b"\x04", "the state before a revert is itself a revision"
        none = VolumeConfig(DATA.vid, "data", Kind.ORIGIN, DATA.size, revisions_to_keep=-1)
        session(pool, none, 9)
        assert pool.revisions(none) == []
        with pytest.raises(StorageError):
            pool.revert(none)

    @pytest.mark.parametrize("revision", ["", "0", "-1", "9", "1x", "../1", "1" * 40, "\N{ARABIC-INDIC DIGIT ONE}"])
    def test_revert_refuses_what_is_no_revision(self, pool: Pool, revision: str) -> None:
        pool.create(DATA)
        session(pool, DATA, 1)
        with pytest.raises(StorageError):
            pool.revert(DATA, revision)
        assert exported(pool, DATA)[:1] == b"\x01"

    def test_import_file_makes_or_replaces_a_volume(self, pool: Pool, tmp_path: Path) -> None:
        pool.import_file(DATA, raw_file(tmp_path, 7), format="raw")
        assert (exported(pool, DATA), pool.size(DATA), pool.revisions(DATA)) == (b"\x07" * MIB, MIB, [])
        pool.import_file(DATA, raw_file(tmp_path, 8, 2 * MIB), format="raw")
        assert (exported(pool, DATA), pool.size(DATA)) == (b"\x08" * 2 * MIB, 2 * MIB)
        assert not (tmp_path / "import.raw").exists()
        pool.revert(DATA)
        assert exported(pool, DATA)[:MIB] == b"\x07" * MIB

    def test_import_in_two_steps(self, pool: Pool) -> None:
        pool.create(DATA)
        path = pool.import_begin(DATA, MIB)
        assert os.stat(path).st_size == MIB
        for refused in (pool.start, pool.clear, lambda volume: pool.import_begin(volume, MIB)):
            with pytest.raises(StorageError):
                refused(DATA)
        with open(path, "r+b") as file:
            file.write(b"\x05" * MIB)
        pool.import_end(DATA, ok=True)
        assert exported(pool, DATA) == b"\x05" * MIB and pool.size(DATA) == MIB
        pool.import_begin(DATA, 4 * MIB)
        pool.import_end(DATA, ok=False)
        pool.import_end(DATA, ok=False)
        assert exported(pool, DATA) == b"\x05" * MIB
        with pytest.raises(StorageError):
            pool.import_end(DATA, ok=True)

    def test_setup_ends_an_import_that_nobody_finishes(self, pool: Pool) -> None:
        pool.create(DATA)
        path = pool.import_begin(DATA, MIB)
        pool.setup()
        assert not os.path.exists(path)
        assert pool.start(DATA).size == DATA.size

    def test_an_import_of_an_odd_size_becomes_whole_sectors(self, pool: Pool) -> None:
        pool.create(DATA)
        with open(pool.import_begin(DATA, 700), "r+b") as file:
            file.write(b"\x05" * 700)
        pool.import_end(DATA, ok=True)
        assert pool.size(DATA) == 1024 and exported(pool, DATA) == b"\x05" * 700 + bytes(324)

    def test_an_import_whose_writer_is_gone_does_not_bar_the_volume_for_ever(self, pool: Pool) -> None:
        pool.create(DATA)
        path = pool.import_begin(DATA, MIB)
        os.utime(path, (0, 0))
        with open(path, "r+b"), pytest.raises(StorageError):
            pool.start(DATA)
        assert pool.start(DATA).size == DATA.size and not os.path.exists(path)
        pool.discard(DATA)
        os.utime(pool.import_begin(DATA, MIB), (0, 0))
        path = pool.import_begin(DATA, 2 * MIB)
        assert os.stat(path).st_size == 2 * MIB
        pool.import_end(DATA, ok=False)

    def test_no_more_revisions_are_kept_than_can_be_read_back(self, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("manifest", "fake"):
            monkeypatch.setattr(f"cloison.storage.{module}.MAX_REVISIONS", 3)
        many = replace(DATA, revisions_to_keep=10**6)
        pool.create(many)
        for pattern in range(5):
            session(pool, many, 1 + pattern)
        assert len(pool.revisions(many)) == 3

    def test_destroy_takes_back_what_setup_made(self, pool: Pool) -> None:
        pool.create(PRIVATE)
        pool.destroy()
        pool.setup()
        assert pool.size(PRIVATE) == PRIVATE.size, "volumes stay"
        pool.remove(PRIVATE)
        pool.destroy()
        pool.destroy()
        assert not os.path.exists(pool.folder)

    def test_destroy_leaves_a_folder_that_somebody_else_made(self, pool: Pool) -> None:
        pool.destroy()
        os.mkdir(pool.folder)
        pool.setup()
        pool.create(PRIVATE)
        pool.remove(PRIVATE)
        pool.destroy()
        assert os.listdir(pool.folder) == []

    def test_destroy_takes_no_file_that_is_not_the_pools(self, pool: Pool) -> None:
        other = os.path.join(pool.folder, "other")
        os.close(os.open(other, os.O_CREAT | os.O_WRONLY, 0o600))
        pool.destroy()
        assert os.path.exists(other)
        pool.setup()
        os.unlink(other)
        pool.destroy()
        assert not os.path.exists(pool.folder), "it is still known whose folder it is"

    def test_a_revert_brings_back_the_size_as_well(self, pool: Pool, tmp_path: Path) -> None:
        keep = replace(DATA, revisions_to_keep=3)
        pool.create(keep)
        pool.resize(keep, 12 * MIB)
        pool.import_file(keep, raw_file(tmp_path, 7), format="raw")
        pool.revert(keep)
        assert pool.size(keep) == 12 * MIB and exported(pool, keep) == bytes(12 * MIB)
        pool.revert(keep)
        assert pool.size(keep) == MIB and exported(pool, keep) == b"\x07" * MIB

    def test_clear(self, pool: Pool) -> None:
        pool.create(DATA)
        session(pool, DATA, 1)
        pool.clear(DATA)
        assert exported(pool, DATA) == bytes(DATA.size)
        pool.revert(DATA)
        assert exported(pool, DATA)[:1] == b"\x01"

    def test_a_clone_lives_on_its_own(self, pool: Pool) -> None:
        copy = VolumeConfig("appvms/copy/data", "data", Kind.ORIGIN, 1)
        pool.create(DATA)
        for pattern in (1, 2, 3):
            session(pool, DATA, pattern)
        write(pool.start(DATA), 4)
        pool.clone(copy, DATA)
        assert pool.size(copy) == DATA.size and pool.commit_id(copy) != pool.commit_id(DATA)
        pool.remove(DATA)
        assert exported(pool, copy)[:1] == b"\x03"
        session(pool, copy, 5)
        assert exported(pool, copy)[:1] == b"\x05"
        pool.create(DATA)
        pool.clone(copy, DATA)
        assert exported(pool, copy) == bytes(DATA.size)
        pool.revert(copy)
        assert exported(pool, copy)[:1] == b"\x05"
        with pytest.raises(StorageError):
            pool.clone(copy, copy)

    def test_a_snapshot_can_be_cloned_and_exported_as_its_source(self, pool: Pool) -> None:
        pool.create(TEMPLATE)
        session(pool, TEMPLATE, 1)
        standalone = VolumeConfig("appvms/alone/root", "root", Kind.ORIGIN, 1)
        pool.clone(standalone, ROOT)
        assert exported(pool, standalone) == exported(pool, ROOT)

    def test_resize_grows_only(self, pool: Pool) -> None:
        pool.create(DATA)
        session(pool, DATA, 1)
        pool.resize(DATA, 12 * MIB)
        assert pool.size(DATA) == 12 * MIB
        content = exported(pool, DATA)
        assert len(content) == 12 * MIB and content[:1] == b"\x01"
        session(pool, DATA, 2, offset=11 * MIB)
        assert exported(pool, DATA)[11 * MIB] == 2
        with pytest.raises(StorageError):
            pool.resize(DATA, MIB)
        write(pool.start(DATA), 3)
        pool.resize(DATA, 14 * MIB)
        source = pool.start(DATA)
        assert source.size == 14 * MIB
        write(source, 4, offset=13 * MIB)

    @pytest.mark.parametrize("size", [-1, 0, MAX_SIZE + 1, 10**20])
    def test_sizes_out_of_range_are_refused(self, pool: Pool, size: int) -> None:
        pool.create(DATA)
        other = VolumeConfig("appvms/other/data", "data", Kind.ORIGIN, size)
        with pytest.raises(StorageError):
            pool.create(other)
        with pytest.raises(StorageError):
            pool.resize(DATA, size)
        with pytest.raises(StorageError):
            pool.import_begin(DATA, size)
        with pytest.raises(StorageError):
            pool.start(VolumeConfig("appvms/mail/volatile", "volatile", Kind.VOLATILE, size))
        assert pool.start(DATA).size == DATA.size

    def test_odd_sizes_become_whole_sectors(self, pool: Pool) -> None:
        odd = VolumeConfig("appvms/odd/data", "data", Kind.ORIGIN, 1)
        pool.create(odd)
        assert pool.size(odd) == pool.start(odd).size == 512

    def test_a_dirty_volume_is_not_changed_behind_its_qube(self, pool: Pool, tmp_path: Path) -> None:
        pool.create(DATA)
        pool.create(TEMPLATE)
        session(pool, DATA, 1)
        pool.start(DATA)
        path = raw_file(tmp_path, 1)
        for change in (
            lambda: pool.import_file(DATA, path, format="raw"), lambda: pool.import_begin(DATA, MIB),
            lambda: pool.clear(DATA), lambda: pool.revert(DATA), lambda: pool.clone(DATA, TEMPLATE),
        ):
            with pytest.raises(StorageError):
                change()
        assert os.path.exists(path)
        assert pool.is_dirty(DATA)

    def test_remove_takes_everything_and_is_idempotent(self, pool: Pool) -> None:
        pool.create(DATA)
        before = pool.commit_id(DATA)
        session(pool, DATA, 1)
        pool.start(DATA)
        pool.remove(DATA)
        pool.remove(DATA)
        for use in (pool.start, pool.size, pool.commit_id, pool.revisions, pool.usage, pool.export_begin, pool.clear):
            with pytest.raises(StorageError, match="does not exist"):
                use(DATA)
        assert not pool.is_dirty(DATA)
        pool.create(DATA)
        assert exported(pool, DATA) == bytes(DATA.size), "QSB-050: nothing of the old volume comes back"
        assert pool.commit_id(DATA) != before

    @pytest.mark.parametrize("vid", [
        "", "mail/private", "appvms/mail", "appvms/../../etc/private", "/etc/passwd/x", "appvms/mail/../x", "appvms/wo rk/private",
        "appvms/mail/pri\nvate", "appvms/mail/private/", "other/mail/private", "appvms/" + "a" * 32 + "/private",
        "appvms/mail/" + "a" * 33, "appvms/mail/private.json", "appvms/.blank/private", "appvms//private", "appvms/a,b=c/private",
    ])
    def test_a_bad_volume_id_never_becomes_a_path(self, pool: Pool, vid: str) -> None:
        bad = VolumeConfig(vid, "private", Kind.ORIGIN, MIB)
        for use in (pool.create, pool.remove, pool.start, pool.size, pool.clear):
            with pytest.raises(StorageError):
                use(bad)
        with pytest.raises(StorageError):
            pool.start(VolumeConfig("appvms/mail/root", "root", Kind.SNAPSHOT, MIB, source=vid))

    def test_export_end_removes_nothing_else(self, pool: Pool, tmp_path: Path) -> None:
        pool.create(DATA)
        outside = tmp_path / "precious"
        outside.write_bytes(b"x")
        with pytest.raises(StorageError):
            pool.export_end(DATA, str(outside))
        assert outside.exists()
        path = pool.export_begin(DATA)
        pool.export_end(DATA, path)
        pool.export_end(DATA, path)
        assert not os.path.exists(path)

    def test_usage_and_space(self, pool: Pool) -> None:
        pool.create(DATA)
        before = pool.usage(DATA)
        session(pool, DATA, 1)
        assert pool.usage(DATA) > before
        size, used = pool.space()
        assert 0 < used <= size

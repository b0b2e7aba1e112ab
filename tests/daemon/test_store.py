from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from pathlib import Path

import pytest

from cloison.daemon.fake import ask, close_app, fake_app
from cloison.daemon.store import MIGRATIONS, Store
from cloison.errors import StoreError
from cloison.model.catalogue import SYSTEM
from cloison.model.journal import Row
from cloison.model.labels import Label

CHANGES = (
    ("admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black"),
    ("admin.vm.Create.AppVM", "dom0", "tpl", "name=work label=blue"),
    ("admin.vm.property.Set", "work", "netvm", ""),
    ("admin.vm.property.Set", "work", "vcpus", "4"),
    ("admin.vm.property.Set", "work", "autostart", "True"),
    ("admin.vm.feature.Set", "work", "b", "x"),
    ("admin.vm.feature.Set", "work", "a", ""),
    ("admin.vm.feature.Set", "work", "b", "y"),
    ("admin.vm.tag.Set", "work", "mine", ""),
    ("admin.vm.notes.Set", "work", "", "a note\n"),
    ("admin.vm.firewall.Set", "work", "", "action=drop\n"),
    ("admin.vm.device.pci.Assign", "work", "dom0+00_1f.2+_", "mode='required' _permissive='True'"),
    ("admin.label.Create", "dom0", "pink", "0xff00aa"),
    ("admin.property.Set", "dom0", "stats_interval", "7"),
)
READS = (
    *(("admin.vm." + call, "work", "") for call in (
        "property.GetAll", "feature.List", "tag.List", "notes.Get", "firewall.Get", "device.pci.Assigned", "volume.List")),
    ("admin.vm.volume.Info", "work", "private"), ("admin.vm.feature.Get", "work", "b"), ("admin.label.List", "dom0", ""),
    ("admin.property.GetAll", "dom0", ""), ("admin.vm.List", "dom0", ""), ("admin.pool.List", "dom0", ""),
)


def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    async def read(change: bool) -> list[str]:
        app = await fake_app(str(tmp_path))
        for method, dest, argument, payload in CHANGES if change else ():
            answer = await ask(app, method, dest, argument, payload)
            assert not answer.failure, (method, answer)
        answers = [re.sub("path=.*\n", "", (await ask(app, *each)).content) for each in READS]     # the fake pool keeps no files
        app.parts.store.close()
        return answers

    before = asyncio.run(read(change=True))
    assert before == asyncio.run(read(change=False))
    assert "b\na\n" in before


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "store.sqlite")
    Store(path).close()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version={len(MIGRATIONS) + 2}")
    database.close()
    with pytest.raises(StoreError, match="newer"):
        Store(path)


def test_another_programs_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "store.sqlite")
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    with pytest.raises(StoreError, match="another program"):
        Store(path)
    database = sqlite3.connect(path)
    assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    database.close()


@pytest.mark.parametrize("damage", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_damage_is_one_clear_error(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(damage)
    with pytest.raises(StoreError):
        Store(str(path))
    assert path.read_bytes() == damage


def test_a_change_is_on_the_disk_when_it_is_acknowledged(tmp_path: Path) -> None:
    """Not only with the kernel, which a power loss takes along: SQLite is told to flush its log at each commit (2 is FULL)."""
    store = Store(str(tmp_path / "store.sqlite"))
    settings = {name: store._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")}
    assert settings == {"synchronous": 2, "journal_mode": "wal"}
    store.close()


def test_the_store_is_its_owners_alone_and_its_name_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("cloison.runtime.files.fsync_dir", synced.append)
    path = tmp_path / "store.sqlite"
    store = Store(str(path))
    assert path.stat().st_mode & 0o777 == 0o600 and synced == [str(tmp_path)]
    store.close()
    path.chmod(0o644)
    Store(str(path)).close()
    assert path.stat().st_mode & 0o777 == 0o600 and synced == [str(tmp_path)], "only of a new one"


def row(name: str, number: int) -> Row:
    return Row("labels", SYSTEM, name, Label(name, "0x000000", number))


def labels_of(store: Store) -> list[str]:
    return [name for name, _ in store._rows("labels")]


def test_rows_are_written_all_or_none_and_the_store_goes_on(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store.sqlite"))
    store.write([row("a", 1)])
    with pytest.raises(StoreError, match="can't be written"):
        store.write([row("b", 2), Row("tags", 4711, "of-nobody", None)])
    assert labels_of(store) == ["a"] and not store._database.in_transaction
    store.write([row("c", 3), row("a", 4), Row("labels", SYSTEM, "c", None, deleted=True)])
    assert labels_of(store) == ["a"]
    store.check()
    store.close()


@pytest.mark.parametrize("call", ["write", "check"])
def test_a_failure_is_one_sentence_and_undone_whatever_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store = Store(str(tmp_path / "store.sqlite"))

    def fail(_name: str) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("cloison.runtime.faults.point", fail)
        with pytest.raises(StoreError, match=r"can't be written: \[Errno 5\] Input/output error$") as failed:
            store.write([row("a", 1)]) if call == "write" else store.check()
    assert failed.value.hint.startswith("Free some space") and not store._database.in_transaction
    store.write([row("a", 1)])
    store.close()
    with pytest.raises(StoreError, match="can't be written"):
        store.write([row("b", 1)])
    with pytest.raises(StoreError, match="can't be written"):
        store.check()


def test_a_check_writes_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    store = Store(str(path))
    written = path.with_name("store.sqlite-wal").stat().st_size
    store.check()
    assert path.with_name("store.sqlite-wal").stat().st_size > written
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1 + len(MIGRATIONS),)


def test_what_belongs_to_a_qube_goes_with_it(tmp_path: Path) -> None:
    async def run() -> None:
        app = await fake_app(str(tmp_path))
        for each in CHANGES[:-2]:
            assert not (await ask(app, *each)).failure
        qid = app.system.qube("work").qid
        assert not (await ask(app, "admin.vm.Remove", "work")).failure
        for table in ("properties", "features", "tags", "volumes", "assignments", "texts"):
            left = app.parts.store._database.execute(f"SELECT 1 FROM {table} WHERE owner = ?", (qid,))  # noqa: S608 ours
            assert left.fetchall() == [], table
        await close_app(app)

    asyncio.run(run())


def test_a_full_disk_is_named_when_the_store_can_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"x" * 4096)
    monkeypatch.setattr("cloison.daemon.store.is_short", lambda _folder: True)
    with pytest.raises(StoreError) as failed:
        Store(str(path))
    assert failed.value.hint == f"Free some space: the disk of {tmp_path} is full."

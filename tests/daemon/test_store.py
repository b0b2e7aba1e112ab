from __future__ import annotations

import asyncio
import re
import sqlite3
from pathlib import Path

import pytest

from cloison.daemon.fake import ask, fake_app
from cloison.daemon.store import VERSION, Store
from cloison.errors import StoreError

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
    database.execute(f"PRAGMA user_version={VERSION + 1}")
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

"""Data folders of every format there has been: opened, understood, and changed. `tests/formats/N` was written by that version:
`store.sql` is its store as SQL, `pools/` its volumes' records. Images are made here: a record names them, and they have no format
of ours.
"""
from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from tests.storage.test_manifest_steps import make_image

from cloison.daemon import store
from cloison.daemon.app import App
from cloison.daemon.fake import ask, close_app, fake_parts
from cloison.daemon.fake_wardens import FakeWardens
from cloison.daemon.recovery import bring_up
from cloison.daemon.store import Store
from cloison.daemon.wiring import DRIVERS
from cloison.errors import StoreError
from cloison.model.catalogue import SYSTEM
from cloison.model.journal import Row
from cloison.storage import manifest

FORMATS = Path(__file__).parents[1] / "formats"
UUID = "0a173c71-416e-4927-ba7e-e4d6b97db9aa"


def lay(formats: Path, root: Path) -> None:
    """A data folder as it was left."""
    data = root / "data"
    shutil.copytree(formats / "pools", data / "pools")
    database = sqlite3.connect(data / "store.sqlite")
    database.executescript((formats / "store.sql").read_text().replace("@ROOT@", str(root)))
    database.close()
    for record in data.rglob("*.json"):
        for commit in json.loads(record.read_text())["commits"]:
            image = record.with_name(f"{record.stem}.{commit['id']}.{commit['format']}")
            make_image(image, commit["size"])
            os.truncate(image, max(image.stat().st_size, commit.get("length", 0)))


@pytest.mark.parametrize("formats", sorted(FORMATS.iterdir()), ids=lambda path: path.name)
def test_a_data_folder_of_that_format_is_opened_and_used(formats: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    lay(formats, root)

    async def answer(app: App, method: str, dest: str = "dom0", argument: str = "", payload: str = "") -> str:
        found = await ask(app, method, dest, argument, payload)
        assert not found.failure, (method, found)
        return found.content

    async def run() -> None:
        app = App(fake_parts(str(root), drivers=DRIVERS, wardens=FakeWardens(str(tmp_path / "wardens"))))
        await bring_up(app)
        assert set((await answer(app, "admin.vm.List")).splitlines()) == {
            "dom0 class=AdminVM state=Running uuid=00000000-0000-0000-0000-000000000000",
            f"work class=AppVM state=Halted uuid={UUID}",
            "alone class=StandaloneVM state=Halted uuid=bb5f515c-2ef7-4f75-bcb4-b270931f595b",
            "tpl class=TemplateVM state=Halted uuid=808dfb73-ff7d-4a98-b969-6c94888ab0d4"}
        assert (await answer(app, "admin.vm.property.Get", "work", "memory")).endswith(" 500")
        assert (await answer(app, "admin.vm.property.Get", "work", "netvm")) == "default=False type=vm "
        assert (await answer(app, "admin.vm.property.Get", "work", "label")).endswith(" red")
        assert (await answer(app, "admin.property.Get", argument="default_template")).endswith(" tpl")
        assert await answer(app, "admin.vm.feature.Get", "work", "service.x") == "1"
        assert "mine" in (await answer(app, "admin.vm.tag.List", "work")).split()
        assert "dsthost=example.org" in await answer(app, "admin.vm.firewall.Get", "work")
        info = dict(line.split("=") for line in (await answer(app, "admin.vm.volume.Info", "work", "private")).splitlines())
        assert (info["size"], info["revisions_to_keep"]) == (str(2 << 30), "3")
        assert await answer(app, "admin.vm.volume.ListSnapshots", "alone", "root")
        await answer(app, "admin.vm.volume.Resize", "work", "private", str(3 << 30))
        record = root / "data/pools/qcow2/appvms/work/private.json"
        assert json.loads(record.read_text())["version"] == manifest.VERSION
        await answer(app, "admin.vm.Start", "work")
        await answer(app, "admin.vm.Kill", "work")
        await answer(app, "admin.vm.Remove", "work")
        await close_app(app)

    asyncio.run(run())


# -- steps from one version of the store to the next -------------------------------------------------------------------------


def first(database: sqlite3.Connection) -> None:
    database.execute("CREATE TABLE new (x)")


def second(database: sqlite3.Connection) -> None:
    database.execute("INSERT INTO new VALUES (1)")


def broken(database: sqlite3.Connection) -> None:
    second(database)
    raise sqlite3.OperationalError("disk I/O error")


def version(path: Path) -> int:
    database = sqlite3.connect(path)
    (found,) = database.execute("PRAGMA user_version").fetchone()
    database.close()
    return int(found)


def test_each_step_is_taken_once_and_the_former_store_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite"
    made = Store(str(path))
    made.write([Row("globals", SYSTEM, "kept", "yes")])
    made.close()
    monkeypatch.setattr(store, "MIGRATIONS", (first, broken))
    with pytest.raises(StoreError, match="disk I/O error"):
        Store(str(path))
    assert version(path) == 2
    monkeypatch.setattr(store, "MIGRATIONS", (first, second))
    for _ in range(2):
        Store(str(path)).close()
        assert version(path) == 3
        database = sqlite3.connect(path)
        assert database.execute("SELECT count(*) FROM new").fetchone() == (1,)
        database.close()
    for number in (1, 2):
        kept = tmp_path / f"store.sqlite.v{number}"
        assert version(kept) == number and os.stat(kept).st_mode & 0o777 == 0o600
        database = sqlite3.connect(kept)
        assert database.execute("SELECT name FROM globals WHERE name = 'kept'").fetchone()
        database.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["store.sqlite", "store.sqlite.v1", "store.sqlite.v2"]


def test_a_new_store_is_of_the_newest_version_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MIGRATIONS", (broken, broken))
    path = tmp_path / "store.sqlite"
    Store(str(path)).close()
    assert version(path) == 3 and not path.with_name("store.sqlite.v1").exists()

"""The store: the model on disk, in SQLite. One transaction a call, durable before the reply.

The file carries its schema's version. An older one is kept beside it (`store.sqlite.v1`) and taken to today's by `MIGRATIONS`, each
step in a transaction of its own; one that is newer, damaged or not ours is refused with one clear error and left as it is.
Rows keep their order of insertion, which is the order features, pools and labels are listed in.
"""
from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from typing import Any

from cloison.daemon.reserve import Reserves, is_short
from cloison.devicetext import Device
from cloison.errors import StoreError
from cloison.model.catalogue import SYSTEM
from cloison.model.devices import Assignment
from cloison.model.domains import Qube, System
from cloison.model.journal import Row
from cloison.model.labels import Label
from cloison.model.properties import Holder, Value
from cloison.model.volumes import Pool, Volume
from cloison.runtime import faults, files

Migration = Callable[[sqlite3.Connection], None]
MIGRATIONS: tuple[Migration, ...] = ()      # from schema 1 to 2, from 2 to 3, ...: statements in a transaction that is open
APPLICATION = 0x436C6F69        # "Cloi"
_OF_QUBES = ("properties", "features", "tags", "volumes", "assignments", "texts")
_OF_SYSTEM = ("globals", "labels", "pools")
_SCHEMA = [
    "CREATE TABLE qubes (qid INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, uuid TEXT NOT NULL UNIQUE, class TEXT NOT NULL,"
    " state TEXT NOT NULL)",
    *(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, owner INTEGER NOT NULL REFERENCES qubes(qid) ON DELETE CASCADE,"
      " name TEXT NOT NULL, value TEXT, UNIQUE (owner, name))" for table in _OF_QUBES),
    *(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, value TEXT)" for table in _OF_SYSTEM),
]


class Store:
    """An open store. Raises StoreError from every method when the file can't be read or written; on a full disk it takes of what
    was kept back for it.
    """

    def __init__(self, path: str, reserves: Reserves | None = None) -> None:
        self.path = path
        self._folder = os.path.dirname(path) or "."
        self.reserves = reserves or Reserves(self._folder)
        failures = (sqlite3.Error, OSError)
        try:
            try:
                self._database = self.reserves.helps(self._folder, self._open, failures)
            except failures:
                if not is_short(self._folder):
                    raise
                self._database = self._open("EXCLUSIVE")
        except failures as error:
            failure = StoreError(f"the store {path} can't be opened: {error}")
            if is_short(self._folder):
                failure.hint = f"Free some space: the disk of {self._folder} is full."
            raise failure from error

    def _open(self, locking: str = "NORMAL") -> sqlite3.Connection:
        """`locking`: EXCLUSIVE needs no file beside the store, for which a full disk has no room; nobody else can read it then."""
        fresh = not os.path.exists(self.path)
        database = sqlite3.connect(self.path, isolation_level=None, timeout=5, cached_statements=64)
        try:
            os.chmod(self.path, 0o600)
            database.execute(f"PRAGMA locking_mode={locking}")
            application = database.execute("PRAGMA application_id").fetchone()[0]
            version = database.execute("PRAGMA user_version").fetchone()[0]
            empty = not database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
            if not empty and application != APPLICATION:
                raise StoreError(f"{self.path} is a database of another program")
            newest = 1 + len(MIGRATIONS)
            if version > newest:
                raise StoreError(f"the store {self.path} was written by a newer Cloison (schema {version}, known: {newest})")
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                database.execute(f"PRAGMA {pragma}")
            if empty:
                self._create(database)
            damage = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise StoreError(f"the store {self.path} is damaged: {damage}")
            if not empty:
                self._migrate(database, version)
        except BaseException:
            database.close()
            raise
        if fresh:
            files.fsync_dir(self._folder)
        return database

    @staticmethod
    def _create(database: sqlite3.Connection) -> None:
        database.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            database.execute(statement)
        database.execute(f"PRAGMA application_id={APPLICATION}")
        database.execute(f"PRAGMA user_version={1 + len(MIGRATIONS)}")
        database.execute("COMMIT")

    def _migrate(self, database: sqlite3.Connection, version: int) -> None:
        """One step after another. kill -9 between two of them leaves the version in between, which goes on from there."""
        steps = MIGRATIONS[version - 1:]
        if steps:
            kept, temporary = f"{self.path}.v{version}", f"{self.path}.tmp"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            database.execute("VACUUM INTO ?", (temporary,))
            with open(temporary, "rb") as file:
                os.fchmod(file.fileno(), 0o600)
                os.fsync(file.fileno())
            files.rename(temporary, kept)
        for number, step in enumerate(steps, version + 1):
            database.execute("BEGIN IMMEDIATE")
            try:
                step(database)
                database.execute(f"PRAGMA user_version={number}")
                database.execute("COMMIT")
            except BaseException:
                database.execute("ROLLBACK")
                raise

    def close(self) -> None:
        self._database.close()

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, rows: Iterable[Row]) -> None:
        """All of the rows or none, on disk when this returns."""
        rows = list(rows)
        self._safely(lambda: self._write_rows(rows))

    def check(self) -> None:
        """Whether it can be written now: for a caller who is about to change what can't be taken back. Raises StoreError."""
        self._safely(lambda: self._write_rows(()))

    def _safely(self, do: Callable[[], None]) -> None:
        failures = (sqlite3.Error, OSError)
        try:
            self.reserves.helps(self._folder, do, failures)
        except failures as error:
            failure = StoreError(f"the store {self.path} can't be written: {error}")
            failure.hint = "Free some space, or see what is wrong with the disk."
            raise failure from error

    def _write_rows(self, rows: Collection[Row]) -> None:
        """Without a row the transaction still writes: the number of the schema, as it was."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            faults.point("store:write")
            for row in rows:
                self._write_row(row)
                faults.point("store:row")
            if not rows:
                self._database.execute(f"PRAGMA user_version={1 + len(MIGRATIONS)}")
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _write_row(self, row: Row) -> None:
        execute = self._database.execute
        if row.table == "qubes":
            self._write_qube(row)
        elif row.owner == SYSTEM and row.deleted:
            execute(f"DELETE FROM {row.table} WHERE name = ?", (row.key,))  # noqa: S608 the table's name is ours
        elif row.owner == SYSTEM:
            execute(f"INSERT INTO {row.table} (name, value) VALUES (?, ?)"  # noqa: S608
                    " ON CONFLICT (name) DO UPDATE SET value = excluded.value", (row.key, _encode(row.value)))
        elif row.deleted:
            execute(f"DELETE FROM {row.table} WHERE owner = ? AND name = ?", (row.owner, row.key))  # noqa: S608
        else:
            execute(f"INSERT INTO {row.table} (owner, name, value) VALUES (?, ?, ?)"  # noqa: S608
                    " ON CONFLICT (owner, name) DO UPDATE SET value = excluded.value", (row.owner, row.key, _encode(row.value)))

    def _write_qube(self, row: Row) -> None:
        if row.deleted:
            self._database.execute("DELETE FROM qubes WHERE qid = ?", (row.owner,))
        elif isinstance(row.value, Qube):
            qube = row.value
            self._database.execute("INSERT INTO qubes VALUES (?, ?, ?, ?, ?)",
                                   (qube.qid, qube.name, qube.uuid, qube.klass, qube.state))
        else:
            self._database.execute("UPDATE qubes SET state = ? WHERE qid = ?", (row.value, row.owner))

    # -- reading ------------------------------------------------------------------------------------------------

    def is_empty(self) -> bool:
        """Whether nothing was ever stored."""
        return not self._database.execute("SELECT 1 FROM qubes LIMIT 1").fetchone()

    def load(self, system: System) -> None:
        """Fill an empty model. Raises StoreError for what no version of ours has written."""
        try:
            self._load(system)
        except (sqlite3.Error, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"the store {self.path} is damaged: {type(error).__name__}: {error}") from error

    def _load(self, system: System) -> None:
        for name, text in self._rows("labels"):
            system.labels[name] = Label(**json.loads(text))
        for name, text in self._rows("pools"):
            system.pools[name] = Pool(**json.loads(text))
        owners: dict[int, Qube] = {0: system.dom0}
        for qid, name, uuid, klass, state in self._database.execute("SELECT * FROM qubes WHERE qid > 0 ORDER BY qid"):
            qube = Qube(system, system.kinds[klass], name, uuid, qid)
            qube.state = state
            system.qubes[name] = owners[qid] = qube
        for name, text in self._rows("globals"):
            system.values[name] = _decode(system, name, text)
        for table, put in _READERS.items():
            for owner, name, text in self._database.execute(
                    f"SELECT owner, name, value FROM {table} ORDER BY id"):  # noqa: S608 the table's name is ours
                put(owners[owner], name, text)

    def _rows(self, table: str) -> list[tuple[str, str]]:
        return self._database.execute(f"SELECT name, value FROM {table} ORDER BY id").fetchall()  # noqa: S608


def _encode(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, Assignment):
        return json.dumps({"device": value.device._asdict(), "mode": value.mode, "options": dict(value.options),
                           "frontend": value.frontend})
    return json.dumps(asdict(value))


def _decode(holder: Holder, name: str, text: str | None) -> Value:
    """The typed value of a property."""
    kind = holder.properties[name].type
    if text is None:
        return None
    if kind == "int":
        return int(text)
    return text == "True" if kind == "bool" else text


def _read_property(qube: Qube, name: str, text: str | None) -> None:
    qube.values[name] = _decode(qube, name, text)


def _read_volume(qube: Qube, name: str, text: str) -> None:
    qube.volumes[name] = Volume(**json.loads(text))


def _read_assignment(qube: Qube, name: str, text: str) -> None:
    data = json.loads(text)
    qube.assignments[name] = Assignment(Device(**data["device"]), data["mode"], data["options"], data.get("frontend", ""))


_READERS: dict[str, Any] = {
    "properties": _read_property,
    "features": lambda qube, name, text: qube.features.__setitem__(name, text),
    "tags": lambda qube, name, _: qube.tags.__setitem__(name, None),
    "volumes": _read_volume,
    "assignments": _read_assignment,
    "texts": lambda qube, name, text: qube.texts.__setitem__(name, text),
}

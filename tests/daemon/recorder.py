"""An app whose every effect is written down in order: calls of pools, writes of the store, orders to wardens, events, log lines.

After each step the model, the store and the machines are compared: whatever happened, they agree.
"""
from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from cloison.daemon.app import App
from cloison.daemon.fake import FakeHost, ask, fake_app
from cloison.daemon.fake_wardens import FakeWardens
from cloison.daemon.recovery import bring_up
from cloison.daemon.store import Store
from cloison.model.domains import Qube, System
from cloison.model.journal import Row
from cloison.model.qubes import new_system
from cloison.storage.base import VolumeConfig
from cloison.storage.fake import FakePool
from cloison.values import PowerState
from cloison.wire.blocks import Block
from cloison.wire.warden import DiskSource, Launch

POOL = ("setup", "destroy", "create", "remove", "start", "stop", "spare_revisions", "discard", "import_file", "import_begin",
        "import_end", "clear", "clone", "revert", "resize", "export_begin", "export_end")
WARDENS = ("start", "shutdown", "kill", "pause", "unpause", "qdb_write", "resize", "attach", "detach", "service", "ensure_warm",
           "forget_warm")
INTERNAL = "qubesd.internal.sock"


class Recorder(logging.Handler):
    def __init__(self, app: App, root: str) -> None:
        super().__init__(logging.INFO)
        self.app, self.lines, self._root = app, list[str](), root
        self._tokens: set[str] = set()
        self._shadow("pool", self.pool, POOL)
        self._shadow("warden", self.wardens, WARDENS)
        self._follow(app)

    def _follow(self, app: App) -> None:
        write, check = app.parts.store.write, app.parts.store.check
        self._patch(app.parts.store, "write", lambda rows: self._write(write, list(rows)))
        self._patch(app.parts.store, "check", lambda: (self.note("store: checked"), check())[1])
        app.listen(app.system.dom0, None, self._heard)

    async def restart(self, meanwhile: Callable[[], object]) -> None:
        """qubesd dies and comes up again. What happens meanwhile it is not told."""
        before, pool = self.app, self.pool
        before.machines.launches.close()
        await before.live.close()
        before.parts.store.close()
        self.wardens.on_event = lambda *_: None
        self.note("\nqubesd is killed, and comes up again")
        meanwhile()
        drivers = {**before.parts.drivers, "qcow2": replace(before.parts.drivers["qcow2"], open=lambda *_: pool)}
        self.app = App(replace(before.parts, store=Store(before.parts.store.path), drivers=drivers))
        self._follow(self.app)
        await bring_up(self.app)
        await self.settled()
        self._end()

    def _end(self) -> None:
        """How things stand after a step."""
        up = [" ".join(filter(None, (f"{qube.name}={qube.power.value}", qube.problem, qube.note)))
              for qube in self.app.system.qubes.values() if qube.kind.machine and not qube.is_halted]
        if up:
            self.note(f"up: {', '.join(up)}")
        self.check()

    @property
    def wardens(self) -> FakeWardens:
        assert isinstance(self.app.parts.wardens, FakeWardens)
        return self.app.parts.wardens

    @property
    def pool(self) -> FakePool:
        pool = self.app.pool("varlibqubes")
        assert isinstance(pool, FakePool)
        return pool

    @property
    def host(self) -> FakeHost:
        assert isinstance(self.app.parts.host, FakeHost)
        return self.app.parts.host

    @staticmethod
    def _patch(what: Any, name: str, by: Callable[..., Any]) -> None:
        setattr(what, name, by)

    def _shadow(self, who: str, what: Any, names: Iterable[str]) -> None:
        for name in names:
            self._patch(what, name, self._recorded(who, name, getattr(what, name)))

    def _recorded(self, who: str, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(do)
        def sync(*args: Any, **kwargs: Any) -> Any:
            shown = [self.show(arg) for arg in args] + [f"{key}={self.show(value)}" for key, value in kwargs.items()]
            self.note(f"{who}: {name} {' '.join(shown)}")
            return do(*args, **kwargs)

        return sync

    def show(self, what: Any) -> str:
        if isinstance(what, VolumeConfig):
            return f"{what.vid}({what.kind.value}, {what.size}, keep {what.revisions_to_keep}" + (
                f", of {what.source})" if what.source else ")")
        if isinstance(what, Launch):
            return f"{what.name} xid={what.xid} warm={what.warm} disks=[{', '.join(map(self._disk, what.disks))}]"
        if isinstance(what, Block):
            return " ".join(map(str, what))
        if isinstance(what, dict):
            return "{" + ", ".join(f"{path}={value}" for path, value in what.items()) + "}"
        return "progress" if callable(what) else str(what)

    def _disk(self, disk: DiskSource) -> str:
        top = "" if disk.top is None else " own"
        marks = ("" if disk.writable else " read-only") + (" ephemeral" if disk.ephemeral else "")
        return f"{disk.role} {disk.size}{top}{marks}{f' at {disk.commit}' if disk.commit else ''}"

    def _write(self, write: Callable[[list[Row]], None], rows: list[Row]) -> None:
        for row in rows:
            value = "gone" if row.deleted else self._value(row.value)
            self.note(f"store: {row.table} {row.owner} {row.key} {value}")
        write(rows)

    @staticmethod
    def _value(value: Any) -> str:
        return f"{value.name} {value.klass} {value.state}" if isinstance(value, Qube) else str(value)

    def _heard(self, subject: str, name: str, pairs: Iterable[tuple[str, str]]) -> None:
        details = " ".join(f"{key}={value}" for key, value in dict(pairs).items())
        self.note(f"event: {subject or 'system'} {name} {details}")

    def emit(self, record: logging.LogRecord) -> None:
        self.note(f"log: {record.levelname.lower()} {record.getMessage()}")

    def note(self, line: str) -> None:
        for uuid, name in {qube.uuid: qube.name for qube in self.app.system.qubes.values()}.items():
            line = line.replace(uuid, f"<{name}>")
        self._tokens |= set(self.app.tokens)
        for token in self._tokens:
            line = line.replace(token, "TOKEN")
        self.lines.append(line.replace(self._root, "ROOT").rstrip())

    # -- steps -----------------------------------------------------------------------------------------------------

    async def call(self, method: str, dest: str = "dom0", argument: str = "", payload: str = "", source: str = "dom0",
                   socket: str = "qubesd.sock") -> str:
        """What was answered; failures are written down like everything else."""
        self.note(f"\n{source}: {method} {dest} {argument} {payload}")
        answer = await ask(self.app, method, dest, argument, payload, source=source, socket=socket)
        await self.settled()
        self.note(f"= {answer.failure or 'ok'} {answer.content}")
        self._end()
        return answer.content

    async def quietly(self, method: str, dest: str = "dom0", argument: str = "", payload: str = "") -> str:
        """The answer, and nothing of it written down but what it does."""
        answer = await ask(self.app, method, dest, argument, payload)
        return f"{answer.failure or 'ok'} {answer.content}"

    async def step(self, method: str, dest: str, argument: str = "", payload: str = "") -> None:
        """The call and its answer in a line, and what it does below that."""
        before = len(self.lines)
        answer = await self.quietly(method, dest, argument, payload)
        self.lines.insert(before, f"{method} {dest} {argument} {payload}: {answer}")

    async def happens(self, what: str, do: Callable[[], object]) -> None:
        self.note(f"\n{what}")
        do()
        await self.settled()
        self._end()

    async def settled(self) -> None:
        app = self.app
        for _ in range(5):
            await asyncio.sleep(0)          # what a fake warden does next, it begins
        while tasks := {*app.machines._tasks, *app.machines.launches._preparing}:
            await asyncio.wait(tasks)
        await app.live.settled()
        await app.attachments.settled()

    def check(self) -> None:
        """How things stand, and that all who know say the same."""
        app, running = self.app, set(self.wardens.running())
        assert app.system.journal.rows == [] and app.system.journal.events == []
        store = Store(app.parts.store.path)
        try:
            stored = new_system(FakeHost())
            store.load(stored)
        finally:
            store.close()
        if not app._owed:
            assert picture(stored) == picture(app.system)
        for qube in app.system.qubes.values():
            assert (qube.uuid in running) == (not qube.is_halted) or not qube.kind.machine, (qube.name, qube.power)
            assert (qube.uuid in app.machines._halted) == (qube.uuid in running), qube.name
            assert (qube.start_time is None) == (qube.uuid not in running) or not qube.kind.machine, qube.name
            assert not app.lock(qube).locked()
        assert set(app.machines.starts) <= running and not app.machines._stopping and not app.machines.beginning._under_way
        assert {uuid for uuid, _ in app.volumes._commits} <= running
        assert all(qube.power is PowerState.PAUSED for qube in app.system.qubes.values() if qube in app.machines.waiting)
        known = {qube.uuid for qube in app.system.qubes.values()}
        assert set(app._locks) <= known and {uuid for uuid, _ in app.tokens.values()} <= known
        kept = {volume.vid for qube in app.system.qubes.values() for volume in app.volumes.kept(qube)}
        assert set(self.pool._states) == kept
        files = {path for state in self.pool._states.values() for path in (*state.commits.values(), state.dirty, state.importing)
                 if path is not None}
        assert {os.path.join(self.pool.folder, name) for name in os.listdir(self.pool.folder)} == files


def picture(system: System) -> dict[str, Any]:
    """All of a model that is stored."""
    return {
        "labels": system.labels, "pools": system.pools, "values": system.values,
        "qubes": {qube.name: (qube.qid, qube.uuid, qube.klass, qube.state, qube.values, dict(qube.features), list(qube.tags),
                              dict(qube.volumes), dict(qube.assignments), dict(qube.texts)) for qube in system.qubes.values()},
    }


async def recorder(root: str) -> Recorder:
    return Recorder(await fake_app(root), root)

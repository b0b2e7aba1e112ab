"""Settings that running qubes read from their QubesDB, passed on as they change; and firewall rules that end by themselves.

A qube that can't be told misses nothing: it is told everything at its next start. Enforcing is the guest's (a provider of
network reads its clients' rules); here is only what it is told.
"""
from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from cloison.admin.qubesd import Qubesd
from cloison.daemon import launch
from cloison.daemon.attachments import Attachments
from cloison.daemon.devices import CLASS_OF, Devices
from cloison.daemon.wardens import Wardens
from cloison.errors import CloisonError, MachineError
from cloison.model import deferred, features, firewall
from cloison.model.domains import Qube
from cloison.model.journal import Event
from cloison.runtime.tasks import Tasks
from cloison.runtime.token_bucket import TokenBucket
from cloison.values import PowerState

log = logging.getLogger(__name__)
_UP = (PowerState.RUNNING, PowerState.PAUSED)
QUIET = 0.1                     # s between two tellings of one qube's changes, so that it can't keep us busy
TELLINGS, TELLINGS_RATE = 10, 0.2       # of one qube, at once and a second: each may be hundreds of events
RETRY = 60.0                    # s until rules are tried to be ended again, after a failure
_MOST_WAIT = 24 * 3600.0        # s: the host's clock may be set, so look again at least once a day


class Live:
    def __init__(self, qubesd: Qubesd, wardens: Wardens, devices: Devices, attachments: Attachments) -> None:
        self._qubesd, self._wardens, self._devices, self._attachments = qubesd, wardens, devices, attachments
        self._tasks = Tasks()
        self._changed: dict[Qube, set[str]] = {}        # watched paths that have changed since they were told of
        self._quiet: dict[Qube, asyncio.TimerHandle] = {}       # until when the next ones have to wait
        self._tellings: dict[Qube, TokenBucket] = {}            # of qubes that run and have had news
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def follow(self, events: Iterable[Event]) -> None:
        """Tell the qubes that what has just happened concerns."""
        for event in events:
            qube = self._qubesd.system.qubes.get(event.subject)
            kind, _, name = event.name.partition(":")
            if qube is None:
                continue
            if name in ("relayvm", "remote_name") and kind in ("property-set", "property-reset"):
                self._relay(qube)
            if qube.kind.machine:
                self._follow(qube, kind, name)

    def _follow(self, qube: Qube, kind: str, name: str) -> None:
        if kind in ("domain-feature-set", "domain-feature-delete"):
            self._feature(qube, name)
        elif kind == "firewall-changed":
            self._tasks.begin(self._firewall(qube))
            self.watch_expiry()
        elif kind == "net-domain-connect":
            self._tasks.begin(self._clients(qube))
        elif kind in ("domain-unpaused", "domain-start"):
            self._deferred([qube, *self._qubesd.system.clients(qube)])
        elif name in ("keyboard_layout", "guivm") and kind in ("property-set", "property-reset") and qube.power in _UP:
            self._tasks.begin(self._write(qube, {"/keyboard-layout": str(qube.get("keyboard_layout"))}))
        elif kind == "domain-shutdown":
            self._tellings.pop(qube, None)
            self._devices.forget(qube)
            self._attachments.stopped(qube)

    def forget(self, qube: Qube) -> None:
        """It is removed."""
        self._tellings.pop(qube, None)
        timer = self._quiet.pop(qube, None)
        if timer is not None:
            timer.cancel()
            self._changed.pop(qube, None)

    def qdb_changed(self, qube: Qube, untrusted_path: str) -> None:
        """A running qube has written to a path that is watched. However often it does, it is told of once every QUIET seconds,
        and of one that goes on like that, five times less often than every second.
        """
        if untrusted_path not in CLASS_OF:
            return
        if qube in self._changed:
            self._changed[qube].add(untrusted_path)
        else:
            self._changed[qube] = {untrusted_path}
            self._tasks.begin(self._tell_changes(qube))

    async def _tell_changes(self, qube: Qube) -> None:
        """Of each path once. What comes from now on waits until it has been quiet: the delay itself is what protects us."""
        paths, self._changed[qube] = self._changed[qube], set()
        try:
            for path in sorted(paths):
                with self._qubesd.transaction():
                    qube.journal.emit(qube.name, f"domain-qdb-change:{path}", path=path)
                await self._devices.changed(qube, path)
        finally:
            self._rest(qube)

    def _rest(self, qube: Qube) -> None:
        """What comes from now on waits. Of one that has ended meanwhile nothing is kept."""
        if qube.is_halted:
            del self._changed[qube]
            self._tellings.pop(qube, None)
            return
        loop = asyncio.get_running_loop()
        bucket = self._tellings.setdefault(qube, TokenBucket(TELLINGS, TELLINGS_RATE))
        bucket.spend(loop.time())
        self._quiet[qube] = loop.call_later(max(QUIET, bucket.wait(loop.time())), self._quiet_over, qube)

    def _quiet_over(self, qube: Qube) -> None:
        self._quiet.pop(qube).cancel()
        if self._changed[qube] and not self._closed:
            self._tasks.begin(self._tell_changes(qube))
        else:
            del self._changed[qube]

    async def close(self) -> None:
        """Wait for what is being told, and tell no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self.settled()

    async def settled(self) -> None:
        """Until everything is told. It does not wait for a quiet time to be over: it ends it."""
        while self._tasks or self._quiet:
            for qube in list(self._quiet):
                self._quiet_over(qube)
            if self._tasks:
                await asyncio.wait(self._tasks)

    # -- what is told ---------------------------------------------------------------------------------------------

    def _feature(self, qube: Qube, name: str) -> None:
        entries = features.qdb_entries(name, qube.features.get(name))
        if entries and qube.power in _UP:
            self._tasks.begin(self._write(qube, entries))

    def _relay(self, remote: Qube) -> None:
        """The relay learns what the other machine calls the qube."""
        relay = remote.reference("relayvm")
        if relay is not None and relay.power in _UP:
            self._tasks.begin(self._write(relay, {f"/remote/{remote.name}": str(remote.get("remote_name") or remote.name)}))

    async def _write(self, qube: Qube, entries: dict[str, str | None]) -> None:
        try:
            await self._wardens.qdb_write(qube.uuid, entries)
        except MachineError as error:
            log.warning("%s could not be told of %s: %s", qube.name, ", ".join(list(entries)[:3]), error)

    async def _firewall(self, client: Qube) -> None:
        """The client's provider gets the new rules instead of the old, and the signal last."""
        provider = client.netvm
        if provider is None or provider.power not in _UP:
            return
        entries = launch.firewall_entries(client, self._qubesd.system.host.now())
        stale: dict[str, str | None] = {}
        try:
            for tree in [path for path in entries if path.count("/") == 2]:
                stale |= dict.fromkeys(await self._wardens.qdb_read(provider.uuid, f"{tree}/"))
        except MachineError as error:
            log.warning("%s could not be asked for its clients' rules: %s", provider.name, error)
        # What is gone first, what is new next; the tree's own entry, which is the signal, is the last of its entries.
        await self._write(provider, {**{path: None for path in stale if path not in entries}, **entries})

    def _deferred(self, qubes: Iterable[Qube]) -> None:
        """Whose netvm was changed while it was paused gets it now."""
        waiting = [qube for qube in qubes if deferred.FEATURE in qube.features]
        try:
            for qube in waiting:
                with self._qubesd.transaction():
                    deferred.apply(qube)
        except CloisonError as error:
            log.error("a change of a netvm waits on: %s", error)

    async def _clients(self, provider: Qube) -> None:
        if provider.power in _UP:
            await self._write(provider, dict(launch.provided_network(provider, self._qubesd.system.host.now())))

    # -- rules that end -------------------------------------------------------------------------------------------

    def watch_expiry(self) -> None:
        """Wake up when the next rule of any qube ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ends = [rule.expire for qube in self._with_rules() for rule in _rules(qube) if rule.expire is not None]
        if ends:
            wait = min(max(0.0, min(ends) - self._qubesd.system.host.now()), _MOST_WAIT)
            self._timer = asyncio.get_running_loop().call_later(wait, self.expire)

    def expire(self) -> None:
        """Forget the rules that have ended, and say so."""
        try:
            self._expire()
        except CloisonError as error:
            log.error("firewall rules that have ended are still there: %s", error)
            self._timer = asyncio.get_running_loop().call_later(RETRY, self.expire)
        else:
            self.watch_expiry()

    def _expire(self) -> None:
        now = self._qubesd.system.host.now()
        for qube in self._with_rules():
            rules = _rules(qube)
            left = firewall.unexpired(rules, now)
            if len(left) < len(rules):
                with self._qubesd.transaction():
                    qube.put_text("firewall", firewall.to_text(left))
                    qube.journal.emit(qube.name, "firewall-changed")

    def _with_rules(self) -> list[Qube]:
        return [qube for qube in self._qubesd.system.qubes.values() if "expire=" in qube.texts.get("firewall", "")]


def _rules(qube: Qube) -> list[firewall.Rule]:
    return firewall.parse_rules(qube.texts["firewall"].encode())

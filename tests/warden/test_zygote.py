"""The process that forks wardens, by what comes to it: what is forked, what is refused, and which descriptors stay."""
from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.descriptors import opened
from tests.patience import PATIENCE
from tests.warden.test_main import Place

from cloison.errors import MachineError
from cloison.hypervisor.fake import FakeMachine
from cloison.hypervisor.qemu import warm
from cloison.runtime.life import known
from cloison.runtime.paths import Paths
from cloison.warden import bounds, zygote
from cloison.warden.zygote import Zygote
from cloison.wire.warden import Launch, Lines, launch_to_json


class Requests:
    """What qubesd sends, one packet each; `forked` are the names of the processes that would be there now."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.zygote = Zygote(self._theirs, place.paths, FakeMachine)
        self.forked: list[str] = []
        monkeypatch.setattr(Zygote, "_fork", lambda _self, _work, name: self.forked.append(name))

    def send(self, request: dict[str, Any] | bytes, *fds: int) -> None:
        packet = request if isinstance(request, bytes) else json.dumps(request).encode()
        socket.send_fds(self.ours, [packet], list(fds))

    def launch(self, launch: Launch, do: str = "launch") -> list[dict[str, Any]]:
        """What is said on the control connection; the zygote has no end of it any more."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self.send({"do": do, "launch": launch_to_json(launch)}, theirs.fileno())
            self.serve()
            said = b""
            while data := ours.recv(65536):
                said += data
            return list(Lines().feed(said))

    def serve(self) -> None:
        """Until all that was sent has been heard."""
        again, self._theirs_next = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.close()
        self.zygote.serve()
        self.ours = again
        self._theirs.close()
        self._theirs = self._theirs_next
        self.zygote._requests = self._theirs

    def close(self) -> None:
        self.ours.close()
        self._theirs.close()
        for loaded in self.zygote._loaded.values():
            for fd in loaded:
                os.close(fd)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Requests]:
    found = Requests(Place(tmp_path), monkeypatch)
    yield found
    found.close()


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders of images that were loaded; a damaged one is called `bad`."""
    loaded: list[str] = []

    def load(folder: str) -> warm.Memory:
        loaded.append(folder)
        if folder == "bad":
            raise warm.DamagedImage("the warm image bad is damaged")
        return warm.Memory(os.memfd_create("ram"), os.memfd_create("state"))

    monkeypatch.setattr(warm, "load", load)
    return loaded


def test_it_ends_when_qubesd_does(requests: Requests) -> None:
    requests.serve()
    assert requests.forked == []


def test_a_packet_that_is_cut_short_is_thrown_away_with_its_descriptors_and_the_next_is_heard(
    requests: Requests, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zygote, "MAX_PACKET", 4096)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            requests.send(json.dumps({"do": "forget", "folder": "x" * 5000}).encode(), theirs.fileno())
        assert requests.launch(requests.place.launch) == [] and requests.forked == ["work"]
        assert ours.recv(1) == b"", "it has no copy of it left"


def test_wardens_and_makers_are_forked_by_what_is_asked_for(requests: Requests) -> None:
    assert requests.launch(requests.place.launch) == requests.launch(requests.place.launch, "make") == []
    assert requests.forked == ["work", "maker"]


def test_an_image_is_loaded_once_for_all_its_starts_until_it_is_forgotten(requests: Requests, images: list[str]) -> None:
    launch = dataclasses.replace(requests.place.launch, warm="image")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert requests.launch(launch) == []
    assert images == ["image"] and len(os.listdir("/proc/self/fd")) == before + 2
    for folder in ("image", "image", "unknown"):
        requests.send({"do": "forget", "folder": folder})
    requests.serve()
    assert len(os.listdir("/proc/self/fd")) == before
    requests.launch(launch)
    assert images == ["image", "image"] and requests.forked == ["work"] * 4


def test_a_damaged_image_is_told_to_who_wanted_it_and_nothing_is_forked(requests: Requests, images: list[str]) -> None:
    launch = dataclasses.replace(requests.place.launch, warm="bad")
    for _ in range(2):
        assert requests.launch(launch) == [{"event": "failed", "reason": "the warm image bad is damaged"}]
    assert requests.forked == [] and images == ["bad", "bad"]
    assert requests.launch(requests.place.launch) == [] and requests.forked == ["work"]


def test_a_failure_that_nobody_waits_for_any_more_costs_no_other_start(requests: Requests, images: list[str]) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        requests.send({"do": "launch", "launch": launch_to_json(dataclasses.replace(requests.place.launch, warm="bad"))},
                      theirs.fileno())
    requests.serve()
    assert requests.launch(requests.place.launch) == [] and requests.forked == ["work"]


def test_what_disks_need_is_loaded_before_the_fork(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[tuple[str, int]] = []

    def prepare(launch: Launch) -> None:
        prepared.append((launch.name, len(requests.forked)))
        if len(prepared) > 1:
            raise MachineError("no cipher")

    monkeypatch.setattr(zygote.disks, "prepare", prepare)
    assert requests.launch(requests.place.launch) == []
    assert requests.launch(requests.place.launch) == [{"event": "failed", "reason": "no cipher"}]
    assert prepared == [("work", 0), ("work", 1)] and requests.forked == ["work"] and known(requests.place.paths.qubes) == []


@pytest.mark.parametrize("lease", [True, False])
@pytest.mark.parametrize("folder", ["image", None])
def test_a_warden_has_its_own_connections_and_memory_and_nothing_else_of_the_zygotes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lease: bool, folder: str | None,
) -> None:
    """What it kept of others' images would stay in the host's memory; what it kept of a connection would never hang up."""
    place, given, limits = Place(tmp_path), dict[str, Any](), list[object]()

    class Warden:
        def __init__(self, _paths: Paths, launch: Launch, control: socket.socket, lease: socket.socket | None,
                     memory: warm.Memory | None, *, make_machine: object) -> None:
            given.update(launch=launch, control=control, lease=lease, memory=memory, make_machine=make_machine)

        async def run(self) -> None:
            given["open"] = opened()

    monkeypatch.setattr(zygote, "Warden", Warden)
    monkeypatch.setattr(zygote, "limit_data", limits.append)
    monkeypatch.setattr(zygote, "ends_first", limits.append)
    monkeypatch.setattr(zygote, "say_to", lambda file, _pace, *, stamped: limits.append((file.path, stamped)))
    before = opened()
    pairs = [socket.socketpair() for _ in range(2 if lease else 1)]
    forker = Zygote(pairs[0][0], place.paths, FakeMachine)
    forker._loaded = {name: warm.Memory(os.memfd_create(f"{name}-ram"), os.memfd_create(f"{name}-state"))
                      for name in ("image", "other")}
    memory = forker._loaded[folder] if folder is not None else None
    fds = [os.dup(theirs.fileno()) for _, theirs in pairs]
    control = socket.socket(fileno=os.dup(fds[0]))
    for _, theirs in pairs:
        theirs.close()
    asyncio.run(forker._warden(place.launch, control, fds, memory))
    kept = [name for number, name in given["open"].items() if number not in before and "memfd" in name]
    assert sorted(kept) == ([f"/memfd:image-{part} (deleted)" for part in ("ram", "state")] if folder else [])
    assert (given["memory"] is None, given["lease"] is None) == (folder is None, not lease)
    assert given["launch"] == place.launch and given["make_machine"] is FakeMachine
    assert limits == [bounds.DATA, zygote.OOM_SCORE, (place.paths.qube_log("work"), True)]
    for (ours, _), end in zip(pairs, (given["control"], given["lease"]), strict=False):
        end.close()
        assert ours.recv(1) == b"", "there was no other copy"
        ours.close()
    for fd in given["memory"] or ():
        os.close(fd)


FORK = """
import os, signal, socket, sys
from cloison.hypervisor.fake import FakeMachine
from cloison.runtime.paths import Paths
from cloison.warden.zygote import Zygote

ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
signal.signal(signal.SIGCHLD, signal.default_int_handler)

async def work():
    leads, alike = os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    print("works", leads, alike, theirs.fileno(), open("/proc/self/comm").read().strip(), flush=True)
    {then}

Zygote(theirs, Paths("", "", ""), FakeMachine)._fork(work, "a-name-too-long")
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
status = os.waitstatus_to_exitcode(os.wait()[1])
print("goes on", status, theirs.fileno() >= 0, flush=True)
"""


@pytest.mark.parametrize(("then", "status", "said"), [
    ("pass", 0, ""), ("raise ValueError('of a bug')", 1, "of a bug"), ("raise SystemExit(0)", 1, "SystemExit"),
    ("sys.stderr.write('last words')", 0, "last words"),
])
def test_a_child_is_a_session_of_its_own_and_ends_with_its_work(then: str, status: int, said: str) -> None:
    """It holds nothing by which qubesd would think that the zygote lives, and never goes on as a second zygote."""
    done = subprocess.run([sys.executable, "-c", FORK.replace("{then}", then)], capture_output=True, text=True, check=True,
                          stdin=subprocess.DEVNULL, timeout=PATIENCE)
    assert done.stdout == f"works True True -1 warden a-name-t\ngoes on {status} True\n"
    assert said in done.stderr and bool(done.stderr) is bool(said)

"""What a daemon wants of qubesd: how it is asked, what counts as an answer, and what becomes of a disposable that can't be had."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.errors import CloisonError, PeerError
from cloison.qrexec.host import qubesd_client
from cloison.qrexec.host.qubesd_client import MAX_REPLY, Disposable, Refused
from cloison.wire import admin

UUID = "12345678-1234-4234-8234-123456789abc"
OK = b"0\0"
HALTED, RUNNING = "QubesVMNotRunningError", "QubesVMNotHaltedError"


def calls(
    folder: Path, replies: dict[str, bytes], talk: Callable[[str], Awaitable[None]],
) -> list[tuple[str, str, bytes]]:
    """Be qubesd, with a reply to each method; method, qube and payload of what was asked. Who has no reply is hung up on."""
    asked: list[tuple[str, str, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _, payload = (await reader.read()).partition(b"\0")
        method, source, kind, dest = head.decode().split(" ")
        assert (source, kind) == ("dom0", "name")
        asked.append((method.removesuffix("+"), dest, payload))
        writer.write(replies.get(asked[-1][0], b""))
        writer.close()

    async def whole() -> None:
        path = str(folder / "qubesd.sock")
        async with asyncio.timeout(PATIENCE), await asyncio.start_unix_server(serve, path):
            await talk(path)

    asyncio.run(whole())
    return asked


def ready(*pairs: tuple[str, str]) -> bytes:
    return admin.event("disp1", "disposable-ready", [("name", "disp1"), *pairs])


@pytest.mark.parametrize(("text", "valid"), [
    ("work", True), (f"uuid:{UUID}", True), ("uuid:x", False), ("", False), ("uuid:", False), ("a/b", False), ("@dispvm", False),
    (UUID.upper() + "x" * 20, False),
])
def test_names(text: str, valid: bool) -> None:
    if valid:
        assert qubesd_client.named(text) == text
    else:
        with pytest.raises(ValueError):
            qubesd_client.named(text)


@pytest.mark.parametrize(("reply", "fine"), [
    (OK, True), (admin.exception(RUNNING, "runs"), True), (admin.exception(HALTED, "no"), False),
    (admin.exception("QubesException", "no"), False),
])
def test_a_qube_that_runs_is_started(tmp_path: Path, reply: bytes, fine: bool) -> None:
    async def talk(path: str) -> None:
        if fine:
            await qubesd_client.start(path, "work")
        else:
            with pytest.raises(Refused):
                await qubesd_client.start(path, "work")

    assert calls(tmp_path, {"admin.vm.Start": reply}, talk) == [("admin.vm.Start", "work", b"")]


@pytest.mark.parametrize("reply", [b"", b"1\0", b"0", b"x" * 10])
def test_what_is_no_reply_is_no_success(tmp_path: Path, reply: bytes) -> None:
    async def talk(path: str) -> None:
        with pytest.raises(PeerError):
            await qubesd_client.start(path, "work")
        assert not await qubesd_client.runs(path, "work")

    calls(tmp_path, {"admin.vm.Start": reply, "admin.vm.CurrentState": reply}, talk)


@pytest.mark.parametrize(("reply", "runs"), [
    (b"0\0mem=1 power_state=Running cputime=2", True), (b"0\0power_state=Running", True),
    (b"0\0power_state=Paused", False), (b"0\0power_state=RunningX", False), (b"0\0", False),
    (admin.exception("QubesException", "power_state=Running"), False),
])
def test_whether_it_runs(tmp_path: Path, reply: bytes, runs: bool) -> None:
    async def talk(path: str) -> None:
        assert await qubesd_client.runs(path, "work") is runs

    calls(tmp_path, {"admin.vm.CurrentState": reply}, talk)


def test_without_qubesd_nothing_is_known_to_run(tmp_path: Path) -> None:
    assert not asyncio.run(qubesd_client.runs(str(tmp_path / "none"), "work"))


def test_no_more_of_a_reply_is_read_than_may_come(tmp_path: Path) -> None:
    async def talk(path: str) -> None:
        assert len(await qubesd_client.call(path, "work", "m")) <= 2 * MAX_REPLY

    calls(tmp_path, {"m": OK + b"x" * 16 * MAX_REPLY}, talk)


@pytest.mark.parametrize(("template", "payload"), [("default-dvm", b""), (f"uuid:{UUID}", b"uuid")])
@pytest.mark.parametrize(("pairs", "target"), [((), "disp1"), ((("uuid", UUID),), f"uuid:{UUID}")])
def test_a_disposable_by_lease(
    tmp_path: Path, template: str, payload: bytes, pairs: tuple[tuple[str, str], ...], target: str,
) -> None:
    async def talk(path: str) -> None:
        async with Disposable(path, template) as disposable:
            assert disposable.target == target

    assert calls(tmp_path, {"cloison.Disposable": ready(*pairs)}, talk) == [("cloison.Disposable", template, payload)]


@pytest.mark.parametrize("reply", [
    b"", admin.exception("QubesException", "no"), admin.event("disp1", "domain-start", []), ready(("uuid", "x")), b"garbage",
])
def test_a_lease_that_is_not_given_is_a_failure_and_nothing_else_is_tried(tmp_path: Path, reply: bytes) -> None:
    async def talk(path: str) -> None:
        with pytest.raises((CloisonError, ValueError)):
            await Disposable(path, "default-dvm").__aenter__()

    assert [method for method, _, _ in calls(tmp_path, {"cloison.Disposable": reply}, talk)] == ["cloison.Disposable"]


NO_LEASES = {"cloison.Disposable": admin.exception("ProtocolError", "unknown"), "admin.vm.CreateDisposable": b"0\0disp2"}
CREATED = [("cloison.Disposable", "dvm", b""), ("admin.vm.CreateDisposable", "dvm", b""), ("admin.vm.Start", "disp2", b"")]


def test_without_leases_it_is_killed_at_the_end(tmp_path: Path) -> None:
    async def talk(path: str) -> None:
        with pytest.raises(ZeroDivisionError):
            async with Disposable(path, "dvm") as disposable:
                assert disposable.target == "disp2"
                raise ZeroDivisionError

    asked = calls(tmp_path, {**NO_LEASES, "admin.vm.Start": OK, "admin.vm.Kill": OK}, talk)
    assert asked == [*CREATED, ("admin.vm.Kill", "disp2", b"")]


@pytest.mark.parametrize("killed", [OK, b"", admin.exception(HALTED, "not running")])
def test_one_that_does_not_start_is_killed_and_that_may_fail(tmp_path: Path, killed: bytes) -> None:
    async def talk(path: str) -> None:
        with pytest.raises(Refused, match="no memory"):
            await Disposable(path, "dvm").__aenter__()

    replies = {**NO_LEASES, "admin.vm.Start": admin.exception("QubesException", "no memory"), "admin.vm.Kill": killed}
    assert calls(tmp_path, replies, talk) == [*CREATED, ("admin.vm.Kill", "disp2", b"")]


def test_a_name_that_is_none_is_nobodys(tmp_path: Path) -> None:
    async def talk(path: str) -> None:
        with pytest.raises(ValueError):
            await Disposable(path, "dvm").__aenter__()

    assert calls(tmp_path, {**NO_LEASES, "admin.vm.CreateDisposable": b"0\0../x"}, talk) == CREATED[:2]

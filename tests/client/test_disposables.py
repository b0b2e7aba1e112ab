"""Disposables of a size of their own, by lease, waited for and awaited; against the real qubesd on fake parts, and a fake one."""
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from fake_qubesd import FakeQubesd
from tests.patience import PATIENCE

from cloison.client import aio
from cloison.client.connection import Connection, NoDaemon
from cloison.client.disposables import Disposable, payload, shape
from cloison.client.domains import get_property, list_qubes
from cloison.client.events import subscribe
from cloison.errors import BadPropertyValue, BadRequest, BadValue, CloisonError, NotPermitted
from cloison.wire import admin


@pytest.fixture
def dvm(real: Connection) -> Connection:
    real.call("dom0", "admin.vm.Create.AppVM", "tpl", b"name=dvm label=red")
    real.call("dvm", "admin.vm.property.Set", "template_for_dispvms", b"True")
    return real


def size(connection: Connection, name: str) -> tuple[str, str]:
    return get_property(connection, name, "memory").value, get_property(connection, name, "vcpus").value


@contextlib.contextmanager
def gone_afterwards(connection: Connection) -> Iterator[None]:
    """The qubes are those of before, a moment after the block."""
    before = set(list_qubes(connection))
    with subscribe(connection) as events:
        yield
        coming = iter(events)
        while set(list_qubes(connection)) != before:
            next(coming)


@pytest.mark.parametrize("memory,vcpus,expected", [(600, 1, ("600", "1")), (600, None, ("600", "2")), (None, 1, ("400", "1"))])
def test_a_size_of_its_own(dvm: Connection, memory: int | None, vcpus: int | None, expected: tuple[str, str]) -> None:
    with gone_afterwards(dvm), Disposable(dvm, "dvm", memory=memory, vcpus=vcpus) as disposable:
        assert size(dvm, disposable.name) == expected
        assert list_qubes(dvm)[disposable.name].state == "Running"
    assert size(dvm, "dvm") == ("400", "2")


def test_the_same_awaited(dvm: Connection) -> None:
    async def main() -> None:
        async with aio.Disposable(aio.Connection(), "dvm", memory=600) as disposable:
            assert await asyncio.to_thread(size, dvm, disposable.name) == ("600", "2")
        async with aio.Disposable(aio.Connection(), "dvm") as disposable:
            assert await asyncio.to_thread(size, dvm, disposable.name) == ("400", "2")

    with gone_afterwards(dvm):
        asyncio.run(main())


def test_a_cancelled_block_ends_it(dvm: Connection) -> None:
    async def main() -> None:
        entered = asyncio.Event()

        async def work() -> None:
            async with aio.Disposable(aio.Connection(), "dvm"):
                entered.set()
                await asyncio.Event().wait()

        async with asyncio.timeout(PATIENCE):
            task = asyncio.ensure_future(work())
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with gone_afterwards(dvm):
        asyncio.run(main())


@pytest.mark.parametrize("said,error", [
    (b"memory=600 memory=700", BadRequest), (b"memory=x", BadRequest), (b"memory=", BadRequest), (b"netvm=none", BadRequest),
    (b"memory=600  vcpus=1", BadRequest), (b" ", BadRequest), (b"uuid memory=600", BadRequest), (b"memory=1234567890", BadRequest),
    (b"memory=-1", BadRequest), (b"vcpus=0", BadPropertyValue), (b"memory=0", BadPropertyValue),
])
def test_what_can_not_be_asked_for_leaves_nothing(dvm: Connection, said: bytes, error: type[Exception]) -> None:
    before = set(list_qubes(dvm))
    with pytest.raises(error):
        dvm.call("dvm", "cloison.Disposable", payload=said)
    assert set(list_qubes(dvm)) == before


def test_only_dom0_says_a_size(dvm: Connection) -> None:
    """Policy may let a qube have disposables; their size is not its own to choose."""
    with pytest.raises(NotPermitted):
        Connection(source="work").call("dvm", "cloison.Disposable", payload=b"memory=600")


@pytest.mark.parametrize("memory,vcpus", [(0, None), (-1, None), (None, 0), (10**9, None)])
def test_absurd_sizes_are_refused_here(root: object, memory: int | None, vcpus: int | None) -> None:
    with pytest.raises(BadValue):
        Disposable(Connection(), memory=memory, vcpus=vcpus)
    with pytest.raises(BadValue):
        aio.Disposable(aio.Connection(), memory=memory, vcpus=vcpus)


def test_words_of_a_size() -> None:
    assert payload(shape(None, None)) == b""
    assert payload(shape(600, 2)) == b"memory=600 vcpus=2"
    assert payload(shape(None, 10**9 - 1)) == b"vcpus=999999999"


def test_who_is_no_disposable_template(dvm: Connection) -> None:
    with pytest.raises(CloisonError, match="not a template for disposables"):
        Disposable(dvm, "work")

    async def main() -> None:
        async with aio.Disposable(aio.Connection(), "work"):
            raise AssertionError("entered")

    with pytest.raises(CloisonError, match="not a template for disposables"):
        asyncio.run(main())


def test_another_qubesd_is_told_the_size_before_the_start(qubesd: FakeQubesd) -> None:
    qubesd.qubes["disp1"] = {"class": "DispVM", "state": "Halted", "label": "red"}
    qubesd.answers["admin.vm.CreateDisposable"] = lambda _, __: admin.ok(b"disp1")
    with Disposable(Connection(), "work", memory=600):
        pass
    assert [call[1:] for call in qubesd.calls if call[0] == "disp1"] == [
        ("admin.vm.property.Set", "memory", b"600"), ("admin.vm.Start", "", b""), ("admin.vm.Kill", "", b"")]


def test_a_qubesd_that_hangs_up(qubesd: FakeQubesd) -> None:
    qubesd.qubes["disp1"] = {"class": "DispVM", "state": "Halted", "label": "red"}
    qubesd.answers["cloison.Disposable"] = lambda _, __: b""

    async def main() -> None:
        async with aio.Disposable(aio.Connection()):
            raise AssertionError("entered")

    with pytest.raises(NoDaemon):
        asyncio.run(main())
    with pytest.raises(NoDaemon):
        Disposable(Connection())

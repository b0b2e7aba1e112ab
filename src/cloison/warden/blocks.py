"""A qube's attached block devices: each a link to another qube and a disk of this one's machine.

    (none) -> attaching -> attached -> leaving -> (none)

`attached` is left by `detach`, or because the link has ended: then whoever listens hears `block-lost`. While `leaving`, the
guest has yet to let go of a disk that is dead already: its name and its slot stay taken, and nothing else does.
"""
from __future__ import annotations

import asyncio
from collections.abc import Callable

from cloison.errors import MachineError, PeerError
from cloison.hypervisor.base import Machine
from cloison.runtime.paths import Paths
from cloison.runtime.tasks import Tasks
from cloison.warden.block_link import BlockLink
from cloison.wire import blocks
from cloison.wire.blocks import Block

UNPLUG_TIME = 10.0          # s that a guest has to let go of a disk whose other end still answers
STUCK_TIME = 5.0            # s that pausing may wait for other qubes to answer what is under way


class Blocks:
    """`event` tells qubesd."""

    def __init__(self, paths: Paths, machine: Machine, event: Callable[[dict[str, object]], None]) -> None:
        self._paths, self._machine, self._event = paths, machine, event
        self._links: dict[str, BlockLink] = {}
        self._attached: dict[str, Block] = {}
        self._tasks = Tasks()

    def listing(self) -> list[dict[str, object]]:
        return [blocks.to_json(block) for block in self._attached.values()]

    async def attach(self, untrusted: object) -> None:
        """Returns when the machine has the disk. Raises MachineError, and then nothing of it is left."""
        try:
            block = blocks.from_json(untrusted)
        except PeerError as error:
            raise MachineError(str(error)) from error
        if block.name in self._links:
            raise MachineError(f"{block.name} is taken")
        link = self._links[block.name] = BlockLink(self._paths, block)
        try:
            await link.open()
            with link.far:
                await self._machine.plug(block.name, link.far, read_only=block.read_only)
        except BaseException:
            link.cut()
            del self._links[block.name]
            raise
        self._attached[block.name] = block
        self._event({"event": "block-attached", "block": blocks.to_json(block)})
        self._tasks.begin(self._follow(block, link))

    async def _follow(self, block: Block, link: BlockLink) -> None:
        """A link that ends by itself takes the disk along."""
        await link.over.wait()
        if self._attached.pop(block.name, None) is not None:
            self._event({"event": "block-lost", "name": block.name})
            await self._leave(block.name)

    async def detach(self, name: str) -> None:
        """Returns when the device is free again and out of the guest's reach. Raises MachineError if it is not attached."""
        if self._attached.pop(name, None) is None:
            raise MachineError(f"{name[:20]} is not attached")
        link = self._links[name]
        leaving = self._tasks.begin(self._leave(name))
        await asyncio.wait([leaving], timeout=UNPLUG_TIME)
        if leaving.done():
            await link.over.wait()          # the machine has hung up, so this has its limit
        link.cut()

    async def _leave(self, name: str) -> None:
        """Until the guest has let go of the disk, or the machine has ended."""
        try:
            await self._machine.unplug(name)
        except MachineError:
            return
        del self._links[name]

    def patience(self) -> asyncio.TimerHandle:
        """A machine that must first finish what is under way is not held up by other qubes for long: cancel it when it has."""
        return asyncio.get_running_loop().call_later(STUCK_TIME, self._cut_all)

    def _cut_all(self) -> None:
        for link in list(self._links.values()):
            link.cut()

    def close(self) -> None:
        """The machine is gone."""
        self._cut_all()
        self._tasks.cancel()

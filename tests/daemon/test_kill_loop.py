"""kill -9 of qubesd again and again under fifty writers: every acknowledged change is there, no other is half there."""
from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.daemon.test_crash import call, daemon
from tests.patience import PATIENCE

from cloison.errors import PeerError
from cloison.wire.admin import Failure, parse_reply

WRITERS = 50


@dataclass
class Writer:
    """Sets two features of its own in turn to rising numbers. `acknowledged` and `asked`: the last of each."""

    number: int
    asked: int = 0
    acknowledged: int = 0
    made: list[str] = field(default_factory=list)

    async def run(self, path: str) -> None:
        """Until the daemon dies."""
        while True:
            self.asked += 1
            request = f"admin.vm.feature.Set+writer{self.number} dom0 name dom0\0{self.asked}"
            if self.number % 10 == 0:
                request = f"admin.vm.Create.AppVM+tpl dom0 name dom0\0name=w{self.number}-{self.asked} label=red"
            if not await answered(path, request.encode()):
                return
            self.acknowledged = self.asked
            if self.number % 10 == 0:
                self.made.append(f"w{self.number}-{self.asked}")


async def answered(path: str, request: bytes) -> bool:
    """Whether the change was acknowledged. False: the daemon died before it said so."""
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        writer.write_eof()
        try:
            reply = parse_reply(await reader.read())
            assert not isinstance(reply, Failure), reply
            return True
        except PeerError:
            return False
        finally:
            writer.close()
    return False


def check(root: Path, writers: list[Writer]) -> None:
    """What the next daemon knows lies between what was acknowledged and what was asked for."""
    listing = call(root, "admin.vm.List", "dom0")
    assert isinstance(listing, str)
    qubes = [line.split()[0] for line in listing.splitlines()]
    for writer in writers:
        if writer.number % 10 == 0:
            assert set(writer.made) <= set(qubes)
            continue
        value = call(root, f"admin.vm.feature.Get+writer{writer.number}", "dom0")
        found = int(value) if isinstance(value, str) else 0
        assert writer.acknowledged <= found <= writer.asked
        writer.acknowledged = writer.asked = found
    for name in qubes:
        if name.startswith("w"):
            assert "size=" in str(call(root, "admin.vm.volume.Info+private", name))
    on_disk = {path.name for path in (root / "data" / "pools" / "qcow2" / "appvms").glob("*")}
    assert on_disk == {name for name in qubes if name.startswith("w")}


def rounds(root: Path, count: int) -> None:
    writers = [Writer(number) for number in range(WRITERS)]
    path = str(root / "run" / "qubesd.sock")
    for number in range(count):
        with daemon(root) as process:
            if number == 0:
                assert call(root, "admin.vm.Create.TemplateVM", "dom0", "name=tpl label=black") == ""
            check(root, writers)

            async def until_killed() -> None:
                before = sum(writer.acknowledged for writer in writers)
                async with asyncio.TaskGroup() as group:
                    for writer in writers:
                        group.create_task(writer.run(path))
                    while sum(writer.acknowledged for writer in writers) < before + 120:
                        assert await answered(path, b"admin.label.Index+red dom0 name dom0\0")
                    process.kill()

            asyncio.run(until_killed())
            assert process.wait(PATIENCE) == -9
    with daemon(root):
        check(root, writers)


def test_lesson_38_acknowledged_changes_survive_a_kill(tmp_path: Path) -> None:
    rounds(tmp_path, 3)


@pytest.mark.slow
def test_lesson_38_acknowledged_changes_survive_thirty_kills(tmp_path: Path) -> None:
    rounds(tmp_path, 30)

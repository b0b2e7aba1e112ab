"""Any sequence of operations, on both drivers, against the few lines that say what a volume is: states, and a dirty one."""
from __future__ import annotations

import tempfile
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from pytest import mark
from tests.contracts.pool import exported, write
from tests.storage.walk import DRIVERS, pool_in

from cloison.storage.base import Kind, VolumeConfig

KIB, SIZE, KEEP = 1 << 10, 128 << 10, 2
VOLUMES = tuple(VolumeConfig(f"appvms/{name}/data", "data", Kind.ORIGIN, SIZE, revisions_to_keep=KEEP) for name in ("one", "two"))
volumes = st.sampled_from((0, 1))
patterns = st.integers(1, 255)


@dataclass
class Known:
    """What a volume must be: committed states, oldest first, and what the running session has made of the last one."""

    states: list[bytes]
    dirty: bytes | None = None

    def commit(self, content: bytes) -> None:
        self.states = [*self.states, content][-1 - KEEP:]


class Volumes(RuleBasedStateMachine):
    driver = ""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="cloison-")
        self.pool = pool_in(self.driver, self.folder.name)
        self.pool.setup()
        self.known = [Known([bytes(SIZE)]) for _ in VOLUMES]
        for volume in VOLUMES:
            self.pool.create(volume)

    def teardown(self) -> None:
        self.folder.cleanup()

    def idle(self) -> list[int]:
        return [number for number, known in enumerate(self.known) if known.dirty is None]

    @rule(number=volumes, pattern=patterns, place=st.integers(0, SIZE // 4096 - 1))
    def write(self, number: int, pattern: int, place: int) -> None:
        known = self.known[number]
        write(self.pool.start(VOLUMES[number]), pattern, place * 4096)
        before = known.states[-1] if known.dirty is None else known.dirty
        known.dirty = before[:place * 4096] + bytes([pattern]) * 4096 + before[(place + 1) * 4096:]

    @rule(number=volumes)
    def stop(self, number: int) -> None:
        known = self.known[number]
        self.pool.stop(VOLUMES[number])
        if known.dirty is not None:
            known.commit(known.dirty)
            known.dirty = None

    @rule(number=volumes)
    def discard(self, number: int) -> None:
        self.pool.discard(VOLUMES[number])
        self.known[number].dirty = None

    @rule(number=volumes)
    def grow(self, number: int) -> None:
        """Seen from the next commit on; what is there already is longer by zeros."""
        known, volume = self.known[number], VOLUMES[number]
        size = self.pool.size(volume) + 4 * KIB
        self.pool.resize(volume, size)
        known.states[-1] = known.states[-1].ljust(size, b"\0")
        if known.dirty is not None:
            known.dirty = known.dirty.ljust(size, b"\0")

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), pattern=patterns)
    def replace(self, data: st.DataObject, pattern: int) -> None:
        number = data.draw(st.sampled_from(self.idle()))
        with open(self.pool.import_begin(VOLUMES[number], SIZE), "r+b") as file:
            file.write(bytes([pattern]) * SIZE)
        self.pool.import_end(VOLUMES[number], ok=pattern != 255)
        if pattern != 255:
            self.known[number].commit(bytes([pattern]) * SIZE)

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.idle()))
        kept = self.pool.revisions(VOLUMES[number])
        if kept:
            place = data.draw(st.integers(0, len(kept) - 1))
            self.pool.revert(VOLUMES[number], kept[place])
            self.known[number].commit(self.known[number].states[place])

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def clone(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.idle()))
        self.pool.clone(VOLUMES[number], VOLUMES[1 - number])
        self.known[number].commit(self.known[1 - number].states[-1])

    @rule()
    def restart(self) -> None:
        """As after a power loss."""
        self.pool = pool_in(self.driver, self.folder.name)
        self.pool.setup()

    @invariant()
    def holds_what_it_must(self) -> None:
        for volume, known in zip(VOLUMES, self.known, strict=True):
            assert exported(self.pool, volume) == known.states[-1]
            assert self.pool.is_dirty(volume) == (known.dirty is not None)
            assert len(self.pool.revisions(volume)) == len(known.states) - 1


@mark.parametrize("driver", DRIVERS)
def test_any_sequence_of_operations(driver: str) -> None:
    machine = type(driver, (Volumes,), {"driver": driver})
    run_state_machine_as_test(machine, settings=settings(
        max_examples=12, stateful_step_count=20, suppress_health_check=list(HealthCheck), phases=(Phase.generate,)))

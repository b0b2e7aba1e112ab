"""The real wardens, forked by the real zygote, over machines without QEMU: what they promise, and what is left if one dies."""
from __future__ import annotations

import asyncio
import dataclasses
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.contracts.wardens import Heard, WardensContract
from tests.patience import PATIENCE

from cloison.daemon.warden_link import Link
from cloison.daemon.zygote import MAX_LAUNCH
from cloison.daemon.zygote_wardens import ZygoteWardens
from cloison.errors import MachineError
from cloison.hypervisor.qemu import warm
from cloison.runtime import life
from cloison.runtime.paths import Paths
from cloison.values import PowerState
from cloison.warden import bounds
from cloison.warden.zygote import OOM_SCORE
from cloison.wire.warden import DiskSource, Kernel, Launch, Layer

UUID = "00000000-0000-4000-8000-000000000001"
ZYGOTE = "tests.warden.fake_zygote"
MEGABYTE = 1 << 20
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """An installation that the zygote finds by its environment, as the real one does."""
    with tempfile.TemporaryDirectory(prefix="cloison-") as root:
        monkeypatch.setenv("CLOISON_ROOT", root)
        monkeypatch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
        result = Paths.from_environment()
        result.ensure()
        yield result
        for uuid in life.known(result.qubes):       # nothing of a failed test goes on
            life.end(result.qubes, uuid)


@pytest.fixture
def wardens(paths: Paths) -> ZygoteWardens:
    return ZygoteWardens(paths, ZYGOTE)


@pytest.fixture
def launch(paths: Paths) -> Launch:
    folder = Path(paths.data)
    for name in ("root.img", "vmlinuz", "initramfs", "modules.img"):
        (folder / name).write_bytes(name.encode())
    disks = (DiskSource("root", MEGABYTE, (Layer(str(folder / "root.img"), "raw"),), commit="c1"), DiskSource("private", MEGABYTE))
    kernel = Kernel("6.1", *(str(folder / name) for name in ("vmlinuz", "initramfs", "modules.img")))
    return Launch("work", UUID, 1, 16, 1, disks, kernel, identity={"/name": "work"}, start_timeout=20)


class TestZygoteWardens(WardensContract):
    """All promises of `Wardens`, kept by processes."""


def run(wardens: ZygoteWardens, work: Callable[[Heard], Awaitable[None]]) -> None:
    """Adopt, work, and let go."""
    async def whole() -> None:
        heard = Heard(wardens)
        await wardens.adopt()
        try:
            async with asyncio.timeout(PATIENCE):
                await work(heard)
        finally:
            await wardens.close()

    asyncio.run(whole())


def holders(paths: Paths, uuid: str) -> list[int]:
    """Processes that hold this qube's lock."""
    path = os.path.join(paths.qubes, f"life.{uuid}")
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fds = [os.readlink(f"/proc/{entry}/fd/{fd}") for fd in os.listdir(f"/proc/{entry}/fd")]
        except OSError:
            continue
        found += [int(entry)] if path in fds else []
    return found


def zygote(paths: Paths) -> int:
    """The process that listens for requests: a child of this one. It must have answered one, else it may still be on its way."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found = [int(pid) for pid in children if ZYGOTE.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
             and f"CLOISON_ROOT={os.path.dirname(paths.run)}".encode() in Path(f"/proc/{pid}/environ").read_bytes()]
    return found[-1]


@pytest.fixture
def core_files() -> Iterator[None]:
    """As large as this process may have them."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.mark.usefixtures("core_files")
def test_a_warden_is_bounded_and_keeps_to_itself(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    """No memory of its guest in a core file, no file for others, no signal of a terminal; it goes before qubesd does."""
    async def work(_heard: Heard) -> None:
        await wardens.start(launch)
        await wardens.pause(UUID)                       # answered when it has said that it runs
        warden, = holders(paths, UUID)
        process = Path(f"/proc/{warden}")
        limits = {line[:26].strip(): line[26:].split()[0] for line in (process / "limits").read_text().splitlines()}
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        assert (limits["Max core file size"], limits["Max data size"]) == ("0", str(bounds.DATA))
        assert (status["Umask"], status["Name"]) == ("0077", "warden work")
        assert int(status["SigIgn"], 16) & 1 << signal.SIGINT - 1
        assert os.getsid(warden) == warden
        assert (process / "oom_score_adj").read_text() == f"{OOM_SCORE}\n"
        log = paths.qube_log("work")
        assert {os.path.realpath(process / "fd" / str(fd)) for fd in (1, 2)} == {os.path.realpath(log)}
        assert "work: running" in Path(log).read_text() and os.stat(log).st_mode & 0o777 == 0o600
        await wardens.kill(UUID)

    run(wardens, work)


def test_what_a_library_logs_in_a_warden_is_a_record_of_the_qubes_log(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    """With its time, and harmless to a terminal, as all that is said."""
    async def work(_heard: Heard) -> None:
        await wardens.start(dataclasses.replace(launch, kernelopts="logs"))
        await wardens.kill(UUID)
        lines = Path(paths.qube_log("work")).read_text().splitlines()
        found, = (line for line in lines if "of a guest" in line)
        assert found[4] == "-" and found.endswith(" WARNING library: of a guest: \\x1b[31m")

    run(wardens, work)


# -- warm images -------------------------------------------------------------------------------------------------------------


async def warmed(wardens: ZygoteWardens, launch: Launch) -> Launch:
    """The launch from its warm image, made if need be."""
    folder = await wardens.ensure_warm(launch, lambda _text: None)
    assert folder is not None
    return dataclasses.replace(launch, warm=folder)


def test_an_image_is_made_once_and_started_from(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    async def work(_heard: Heard) -> None:
        said: list[str] = []
        folders = await asyncio.gather(*(wardens.ensure_warm(launch, said.append) for _ in range(3)))
        assert said == ["booting", "settling", "saving"] and len(set(folders)) == 1 and folders[0] is not None
        assert await wardens.start(dataclasses.replace(launch, warm=folders[0])) == "warm"
        await wardens.kill(UUID)
        await wardens.forget_warm(["c1"])
        assert wardens.warm_images() == os.listdir(paths.warm) == []

    run(wardens, work)
    assert os.listdir(paths.qubes) == []


def test_each_start_reads_its_images_state_from_the_beginning(wardens: ZygoteWardens, launch: Launch) -> None:
    """It is in memory once, for all of them."""
    async def work(_heard: Heard) -> None:
        image = await warmed(wardens, launch)
        uuids = [UUID[:-1] + str(number) for number in (1, 2, 3)]
        for number, uuid in enumerate(uuids):
            assert await wardens.start(dataclasses.replace(image, uuid=uuid, xid=number + 1, name=f"work{number}")) == "warm"
        for uuid in uuids:
            await wardens.kill(uuid)

    run(wardens, work)


def shape(launch: Launch, memory: int) -> Launch:
    return dataclasses.replace(launch, memory=memory)


def of_age(paths: Paths, *launches: Launch) -> None:
    """They were last used so long ago, the first one longest."""
    for age, launch in enumerate(reversed(launches), 1):
        os.utime(Path(paths.warm, warm.key(launch)), (1e9 - age, 1e9 - age))


def test_of_images_beyond_a_few_those_go_that_were_not_used_for_longest(
    wardens: ZygoteWardens, launch: Launch, paths: Paths, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloison.daemon.warm_images.MOST", 2)
    one, two, three, four = (shape(launch, memory) for memory in (16, 17, 18, 19))

    async def work(_heard: Heard) -> None:
        for each in (one, two):
            await warmed(wardens, each)
        of_age(paths, one, two)
        await warmed(wardens, one)                       # used again: now `two` is the oldest
        await warmed(wardens, three)
        assert wardens.warm_images() == sorted(map(warm.key, (one, three)))
        assert await wardens.start(await warmed(wardens, one)) == "warm"
        of_age(paths, one, three)
        await warmed(wardens, four)                      # `one` is older, and a qube runs from it
        assert wardens.warm_images() == sorted(map(warm.key, (one, four)))
        await wardens.kill(UUID)
        of_age(paths, one, four)
        await warmed(wardens, three)
        assert wardens.warm_images() == sorted(map(warm.key, (four, three)))

    run(wardens, work)
    assert sorted(os.listdir(paths.warm)) == sorted(map(warm.key, (four, three)))


def test_an_image_that_was_wanted_just_now_stays_for_the_start_that_is_to_follow(
    wardens: ZygoteWardens, launch: Launch, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloison.daemon.warm_images.MOST", 1)

    async def work(_heard: Heard) -> None:
        wanted = await warmed(wardens, launch)
        await warmed(wardens, shape(launch, 17))
        assert await wardens.start(wanted) == "warm"
        await wardens.kill(UUID)

    run(wardens, work)


def truncate(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    path.chmod(0o600)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


DAMAGES: dict[str, Callable[[Path], object]] = {"cut short": truncate, "one bit": flip, "gone": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("part", [warm.RAM, warm.STATE, warm.DISK, warm.MANIFEST])
def test_a_damaged_image_is_dropped_and_made_again(
    wardens: ZygoteWardens, launch: Launch, part: str, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture,
) -> None:
    async def work(_heard: Heard) -> None:
        warm_launch = await warmed(wardens, launch)
        assert warm_launch.warm is not None
        damage(Path(warm_launch.warm, part))
        assert await wardens.start(warm_launch) == "cold"
        assert wardens.warm_images() == []
        await wardens.kill(UUID)
        assert await wardens.start(await warmed(wardens, launch)) == "warm"
        await wardens.kill(UUID)

    run(wardens, work)
    what = warm.STATE if part == warm.MANIFEST else part
    assert f"is damaged: {what}" in caplog.text and "the next start makes another" in caplog.text


def test_a_whole_image_stays_when_a_warm_start_fails_for_another_reason(wardens: ZygoteWardens, launch: Launch) -> None:
    async def work(_heard: Heard) -> None:
        warm_launch = await warmed(wardens, launch)
        images = wardens.warm_images()
        with pytest.raises(MachineError, match="no such machine"):
            await wardens.start(dataclasses.replace(warm_launch, kernelopts="broken"))
        assert wardens.warm_images() == images and wardens.running() == []

    run(wardens, work)


def test_a_maker_killed_leaves_nothing_and_starts_go_on_without(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    silent = dataclasses.replace(launch, kernelopts="silent")

    async def work(_heard: Heard) -> None:
        booting = asyncio.Event()
        making = asyncio.create_task(wardens.ensure_warm(silent, lambda _text: booting.set()))
        await booting.wait()
        await asyncio.to_thread(life.end, paths.qubes, warm.making(silent))      # kill -9 of what holds its lock
        assert await making is None
        assert os.listdir(paths.warm) == [] and os.listdir(paths.qubes) == []
        assert await wardens.start(launch) == "cold"
        await wardens.kill(UUID)

    run(wardens, work)


def test_a_maker_whose_guest_never_answers_says_so(
    wardens: ZygoteWardens, launch: Launch, paths: Paths, caplog: pytest.LogCaptureFixture,
) -> None:
    async def work(_heard: Heard) -> None:
        silent = dataclasses.replace(launch, kernelopts="silent", start_timeout=1)
        assert await wardens.ensure_warm(silent, lambda _text: None) is None
        assert os.listdir(paths.warm) == [] and os.listdir(paths.qubes) == []

    run(wardens, work)
    assert "no warm image for work: the guest did not get ready in 1 s" in caplog.text


def nothing_is_left(paths: Paths, name: str) -> bool:
    return os.listdir(paths.warm) == [] and os.listdir(paths.qubes) == [] and holders(paths, name) == []


def test_a_maker_ends_with_the_last_start_that_waits_for_it(
    wardens: ZygoteWardens, launch: Launch, paths: Paths, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloison.daemon.warm_images.END_TIME", 2 * PATIENCE)           # it ends by itself
    silent = dataclasses.replace(launch, kernelopts="silent")

    async def work(_heard: Heard) -> None:
        booting = asyncio.Event()
        ahead = asyncio.create_task(wardens.ensure_warm(silent, lambda _text: booting.set(), ahead=True))
        await booting.wait()
        starts = [asyncio.create_task(wardens.ensure_warm(silent, lambda _text: None)) for _ in range(2)]
        await asyncio.sleep(0)
        starts[0].cancel()
        await asyncio.wait({starts[0]})
        assert not starts[1].done() and not ahead.done() and len(holders(paths, warm.making(silent))) >= 1
        starts[1].cancel()
        await asyncio.wait({starts[1]})
        assert starts[1].cancelled() and nothing_is_left(paths, warm.making(silent))
        assert await ahead is None
        assert await wardens.ensure_warm(launch, lambda _text: None) is not None        # nothing of it bars the next one

    run(wardens, work)


def test_a_maker_that_is_wanted_ahead_ends_with_who_wants_it(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    silent = dataclasses.replace(launch, kernelopts="silent")

    async def work(_heard: Heard) -> None:
        booting = asyncio.Event()
        ahead = asyncio.create_task(wardens.ensure_warm(silent, lambda _text: booting.set(), ahead=True))
        await booting.wait()
        ahead.cancel()
        await asyncio.wait({ahead})
        assert nothing_is_left(paths, warm.making(silent))
        booting.clear()
        again = asyncio.create_task(wardens.ensure_warm(silent, lambda _text: booting.set()))
        await booting.wait()                                    # it is made again: giving up is no failure
        again.cancel()
        await asyncio.wait({again})

    run(wardens, work)


def test_a_maker_that_does_not_end_is_killed(
    wardens: ZygoteWardens, launch: Launch, paths: Paths, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloison.daemon.warm_images.END_TIME", 0.1)
    silent = dataclasses.replace(launch, kernelopts="silent")

    async def work(_heard: Heard) -> None:
        booting = asyncio.Event()
        start = asyncio.create_task(wardens.ensure_warm(silent, lambda _text: booting.set()))
        await booting.wait()
        for maker in holders(paths, warm.making(silent)):
            os.kill(maker, signal.SIGSTOP)
        start.cancel()
        await asyncio.wait({start})
        assert nothing_is_left(paths, warm.making(silent))

    run(wardens, work)


# -- deaths ------------------------------------------------------------------------------------------------------------------


def test_the_next_qubesd_takes_over(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    async def first(_heard: Heard) -> None:
        await wardens.start(launch)
        await wardens.pause(UUID)

    run(wardens, first)
    second = ZygoteWardens(paths, ZYGOTE)

    async def take_over() -> None:
        heard = Heard(second)
        found = await second.adopt()
        assert [(each.uuid, each.name, each.xid, each.state) for each in found] == [(UUID, "work", 1, PowerState.PAUSED)]
        await second.unpause(UUID)
        await second.kill(UUID)
        assert (UUID, "stopped") in heard.events
        await second.close()

    asyncio.run(take_over())
    assert os.listdir(paths.qubes) == []


def test_a_start_that_nobody_waits_for_any_more_is_undone(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    async def work(heard: Heard) -> None:
        starting = asyncio.create_task(wardens.start(dataclasses.replace(launch, kernelopts="silent")))
        await asyncio.create_task(wardens.pause(UUID))        # its machine is there, its guest has not answered
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        assert wardens.running() == [] and heard.events == []

    run(wardens, work)
    assert os.listdir(paths.qubes) == []


def test_a_warden_killed_is_reported_and_cleared_away(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    async def work(heard: Heard) -> None:
        await wardens.start(launch)
        [warden] = holders(paths, UUID)
        os.kill(warden, 9)
        await heard.until(UUID, "stopped", "failed")
        assert wardens.running() == [] and os.listdir(paths.qubes) == []
        with pytest.raises(MachineError):
            await wardens.pause(UUID)

    run(wardens, work)


def test_the_zygote_killed_takes_no_qube_along_and_is_started_again(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    async def work(_heard: Heard) -> None:
        await wardens.start(launch)
        first = os.pidfd_open(zygote(paths))
        os.kill(zygote(paths), 9)
        await asyncio.to_thread(os.waitid, os.P_PIDFD, first, os.WEXITED)
        os.close(first)
        other = dataclasses.replace(launch, uuid=UUID[:-1] + "2", name="other", xid=2)
        await wardens.start(other)
        assert wardens.running() == [UUID, other.uuid]
        for uuid in wardens.running():
            await wardens.kill(uuid)

    run(wardens, work)


def test_a_machine_that_ends_says_why_and_leaves_nothing(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    async def work(heard: Heard) -> None:
        with pytest.raises(MachineError, match=r"work did not start: .*no such machine"):
            await wardens.start(dataclasses.replace(launch, kernelopts="broken"))
        assert heard.events == [] and os.listdir(paths.qubes) == []

    run(wardens, work)


# -- silence -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANSWER_TIME", "PROBE_TIME"):
        monkeypatch.setattr(f"cloison.daemon.warden_link.{name}", 0.5)
    monkeypatch.setattr("cloison.daemon.warden_link.BUSY_AGAIN", 0.01)
    monkeypatch.setattr("cloison.daemon.zygote_wardens.KILL_TIME", 0.5)


def stop(paths: Paths, *uuids: str) -> None:
    """As SIGSTOP, a debugger or a swapping host does: each warden is there, and says nothing."""
    for uuid in uuids:
        for warden in holders(paths, uuid):
            os.kill(warden, signal.SIGSTOP)


def go_on(paths: Paths, *uuids: str) -> None:
    for uuid in uuids:
        for warden in holders(paths, uuid):
            os.kill(warden, signal.SIGCONT)


ORDERS: dict[str, Callable[[ZygoteWardens], Awaitable[object]]] = {
    "pause": lambda wardens: wardens.pause(UUID), "unpause": lambda wardens: wardens.unpause(UUID),
    "shutdown": lambda wardens: wardens.shutdown(UUID), "qdb": lambda wardens: wardens.qdb_read(UUID, "/"),
    "console": lambda wardens: wardens.console(UUID), "resize": lambda wardens: wardens.resize(UUID, "root", 1 << 30),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("order", ORDERS)
def test_a_silent_warden_is_said_to_be_silent_and_goes_on_when_it_speaks(
    wardens: ZygoteWardens, launch: Launch, paths: Paths, order: str,
) -> None:
    async def work(heard: Heard) -> None:
        await wardens.start(launch)
        stop(paths, UUID)
        for _ in range(2):
            with pytest.raises(MachineError, match="does not answer; qvm-kill ends it"):
                await ORDERS[order](wardens)
        assert heard.events.count((UUID, "silent")) == 1 and wardens.running() == [UUID]
        go_on(paths, UUID)
        await heard.until(UUID, "answers")
        found = wardens.found(UUID)
        assert (found.name, found.xid, found.unknown, found.commits) == ("work", 1, False, {"root": "c1"})
        assert found.state is PowerState.RUNNING                           # what has failed is not done late
        await wardens.kill(UUID)
        assert (UUID, "stopped") in heard.events

    run(wardens, work)
    assert os.listdir(paths.qubes) == []


@pytest.mark.usefixtures("impatient")
def test_an_order_that_is_carried_out_late_shows(
    wardens: ZygoteWardens, launch: Launch, paths: Paths, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A warden of an earlier version knows no time, and another one was quick to read and slow to do."""
    async def work(heard: Heard) -> None:
        await wardens.start(launch)
        stop(paths, UUID)
        real = Link._send
        with monkeypatch.context() as patch, pytest.raises(MachineError, match="does not answer"):
            patch.setattr(Link, "_send", lambda link, do, _fields: real(link, do, {}))
            await wardens.pause(UUID)
        go_on(paths, UUID)
        await heard.until(UUID, "answers")
        while wardens.found(UUID).state is not PowerState.PAUSED:
            heard.events.clear()
            await heard.until(UUID, "answers")
        await wardens.kill(UUID)

    run(wardens, work)


@pytest.mark.usefixtures("impatient")
def test_a_slow_order_is_no_silence(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    """Its warden says at once that it is there, and the answer may take as long as it likes."""
    async def work(heard: Heard) -> None:
        await wardens.start(launch)
        link = wardens._links[UUID]
        real = link._message
        lost: list[dict[str, object]] = []

        def lose_first(message: dict[str, object]) -> None:
            if not lost and "event" not in message:
                lost.append(message)
            else:
                real(message)

        link._message = lose_first                                         # type: ignore[method-assign]
        order = asyncio.create_task(wardens.pause(UUID))
        done, _ = await asyncio.wait({order}, timeout=1.5)
        assert lost and not done and (UUID, "silent") not in heard.events
        real(lost[0])
        await order
        await wardens.kill(UUID)

    run(wardens, work)


@pytest.mark.usefixtures("impatient")
def test_an_order_that_its_machine_never_answers_has_a_limit_and_shows_when_it_is_carried_out_after_all(
    wardens: ZygoteWardens, launch: Launch, paths: Paths, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with a QEMU that a guest owns, or one whose disk has stuck. Its warden is well: it is not silent, and kill works."""
    monkeypatch.setattr("cloison.daemon.warden_link.ORDER_TIME", 0.6)

    async def work(heard: Heard) -> None:
        await wardens.start(launch)
        link = wardens._links[UUID]
        real = link._message
        lost: list[dict[str, object]] = []

        def lose_first(message: dict[str, object]) -> None:
            if not lost and "event" not in message:
                lost.append(message)
            else:
                real(message)

        link._message = lose_first                                         # type: ignore[method-assign]
        with pytest.raises(MachineError, match="its QEMU does not answer"):
            await wardens.pause(UUID)
        assert (UUID, "silent") not in heard.events
        real(lost[0])
        await heard.until(UUID, "answers")
        assert wardens.found(UUID).state is PowerState.PAUSED
        await wardens.kill(UUID)

    run(wardens, work)


@pytest.mark.usefixtures("impatient")
def test_a_silent_warden_is_killed_from_outside(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    async def work(heard: Heard) -> None:
        await wardens.start(launch)
        stop(paths, UUID)
        await wardens.kill(UUID)
        assert heard.events.index((UUID, "killed")) < heard.events.index((UUID, "stopped"))
        assert wardens.running() == [] and holders(paths, UUID) == []

    run(wardens, work)
    assert os.listdir(paths.qubes) == []


@pytest.mark.usefixtures("impatient")
def test_a_start_whose_warden_is_silent_can_be_given_up(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    async def work(heard: Heard) -> None:
        await wardens.start(launch)
        await wardens.kill(UUID)
        heard.events.clear()
        starting = asyncio.create_task(wardens.start(dataclasses.replace(launch, kernelopts="silent")))
        await asyncio.create_task(wardens.pause(UUID))
        stop(paths, UUID)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        assert wardens.running() == [] and heard.events == [] and holders(paths, UUID) == []

    run(wardens, work)
    assert os.listdir(paths.qubes) == []


def test_what_can_not_be_ended_is_tried_again_and_not_without_end(
    wardens: ZygoteWardens, paths: Paths, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its end is waited for meanwhile."""
    tries: list[int] = []

    async def fails(link: Link) -> None:
        tries.append(1)
        asyncio.get_running_loop().call_soon(link.gone.set)
        if len(tries) > 20:
            link.gone.set()
        raise MachineError("no")

    async def work(_heard: Heard) -> None:
        link = wardens._new_link(UUID)                   # nobody knows it any more, and it is not gone
        link._connected.set()
        monkeypatch.setattr(Link, "end_from_outside", fails)
        await wardens._end_start(link)
        assert len(tries) == 1

    run(wardens, work)


@pytest.mark.usefixtures("impatient")
def test_the_next_qubesd_waits_for_silent_wardens_side_by_side_and_takes_none_for_gone(
    wardens: ZygoteWardens, launch: Launch, paths: Paths, monkeypatch: pytest.MonkeyPatch,
) -> None:
    uuids = [UUID[:-1] + str(number) for number in range(1, 5)]
    launches = [dataclasses.replace(launch, uuid=uuid, name=f"work{xid}", xid=xid) for xid, uuid in enumerate(uuids, 1)]

    async def first(_heard: Heard) -> None:
        for each in launches:
            await wardens.start(each)
        stop(paths, *uuids[1:])

    run(wardens, first)
    second = ZygoteWardens(paths, ZYGOTE)
    asked: list[str] = []
    before: list[str] = []                                                # of these: those before the first answer
    real = Link.ask

    async def ask(link: Link, do: str, **fields: object) -> dict[str, object]:
        asked.append(link.uuid)
        reply = await real(link, do, **fields)
        if link.uuid == uuids[0]:
            before.extend(asked)
        return reply

    async def take_over() -> None:
        monkeypatch.setattr(Link, "ask", ask)
        heard = Heard(second)
        found = {each.uuid: each for each in await second.adopt()}
        monkeypatch.setattr(Link, "ask", real)
        assert set(before) == set(uuids)
        assert {uuid: (each.unknown, each.state) for uuid, each in found.items()} == {
            uuids[0]: (False, PowerState.RUNNING), **{uuid: (True, PowerState.TRANSIENT) for uuid in uuids[1:]}}
        assert [found[uuid].xid for uuid in uuids] == [1, 2, 3, 4]
        assert second.running() == uuids and all(holders(paths, uuid) for uuid in uuids)
        go_on(paths, uuids[1])
        await heard.until(uuids[1], "answers")
        assert second.found(uuids[1]).name == "work2"
        await asyncio.gather(*map(second.kill, uuids))
        assert all((uuid, "stopped") in heard.events for uuid in uuids)
        await second.close()

    asyncio.run(take_over())
    assert os.listdir(paths.qubes) == []


def fill_queue(paths: Paths) -> list[socket.socket]:
    """Each qubesd that was killed has left a connection that nobody took."""
    queued: list[socket.socket] = []
    with pytest.raises(BlockingIOError):
        while len(queued) < 1000:
            queued.append(socket.socket(socket.AF_UNIX))
            queued[-1].setblocking(False)
            queued[-1].connect(os.path.join(paths.qubes, f"warden.{UUID}.sock"))
    return queued


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.usefixtures("impatient")
def test_a_silent_warden_whose_queue_is_full_holds_up_nobody(
    wardens: ZygoteWardens, launch: Launch, paths: Paths, *, goes_on: bool,
) -> None:
    async def first(_heard: Heard) -> None:
        await wardens.start(launch)
        stop(paths, UUID)

    run(wardens, first)
    queued = fill_queue(paths)
    second = ZygoteWardens(paths, ZYGOTE)

    async def take_over() -> None:
        heard = Heard(second)
        assert [(each.uuid, each.unknown, each.xid) for each in await second.adopt()] == [(UUID, True, 1)]
        with pytest.raises(MachineError, match="does not answer"):
            await second.pause(UUID)
        if goes_on:
            go_on(paths, UUID)
            await heard.until(UUID, "answers")
            assert second.found(UUID).name == "work"
            await second.pause(UUID)
        async with asyncio.timeout(PATIENCE):
            await second.kill(UUID)
        assert (UUID, "stopped") in heard.events
        await second.close()

    asyncio.run(take_over())
    for each in queued:
        each.close()
    assert os.listdir(paths.qubes) == []


# -- what is asked -------------------------------------------------------------------------------------------------------------


def test_a_launch_too_large_is_refused_in_words(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    async def work(_heard: Heard) -> None:
        await wardens.start(launch)
        await wardens.kill(UUID)
        before = zygote(paths)
        with pytest.raises(MachineError, match="too many features"):
            await wardens.start(dataclasses.replace(launch, identity={"/vm-config/x": "x" * MAX_LAUNCH}))
        assert zygote(paths) == before and wardens.running() == []

    run(wardens, work)


def test_the_largest_launch_arrives(wardens: ZygoteWardens, launch: Launch) -> None:
    async def work(_heard: Heard) -> None:
        large = {f"/vm-config/{number}": "x" * 3000 for number in range(60)}
        assert await wardens.start(dataclasses.replace(launch, identity=large)) == "cold"
        await wardens.kill(UUID)

    run(wardens, work)


@pytest.mark.usefixtures("paths")
def test_modules_in_the_current_folder_are_not_ours(
    wardens: ZygoteWardens, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A person runs `cloison up` in a folder of downloads."""
    for name in ("json", "asyncio", "cloison", "ctypes"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('another one')")
    monkeypatch.chdir(tmp_path)

    async def work(_heard: Heard) -> None:
        assert await wardens.start(launch) == "cold"
        await wardens.kill(UUID)

    run(wardens, work)


def test_a_lease_let_go_before_the_start_is_done_ends_it(wardens: ZygoteWardens, launch: Launch, paths: Paths) -> None:
    async def work(_heard: Heard) -> None:
        ours, theirs = socket.socketpair()
        ours.close()
        with theirs, pytest.raises(MachineError):
            await wardens.start(dataclasses.replace(launch, kernelopts="silent"), theirs)
        assert os.listdir(paths.qubes) == []

    run(wardens, work)


@pytest.mark.parametrize(("said", "state"), [
    ({"state": "running", "space": "/pool"}, "Paused"), ({"state": "running", "space": ""}, "Running"),
    ({"state": "halting", "space": "/pool"}, "Paused"), ({"state": "paused"}, "Paused"), ({"state": "halting"}, "Halting")])
def test_a_warden_that_waits_for_disk_space_is_taken_over_as_such(paths: Paths, said: dict[str, str], state: str) -> None:
    """A warden of an earlier version says nothing of it."""
    uuid = "00000000-0000-4000-8000-00000000000a"

    async def work() -> None:
        wardens = ZygoteWardens(paths)
        link = wardens._links[uuid] = wardens._new_link(uuid)
        link.facts = {"name": "work", "uuid": uuid, "xid": 7, **said}
        found = wardens.found(uuid)
        assert (found.state, found.space) == (state, said.get("space", ""))

    asyncio.run(work())

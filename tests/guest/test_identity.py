"""What a guest does to become a qube, in a throw-away system: names, ids, time zone, markers."""
from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.guest.inside import inside

from cloison.guest import identity, libc, private_volume, volumes
from cloison.wire.agent import Identity

WHO = Identity(
    xid=7, time=1_700_000_000_000_000_000, entropy="ab" * 64, machine_id="0123456789abcdef" * 2,
    boot_id="71e6d277-9c8e-4f47-8e33-a82e3bdae48b",
    qubesdb={"/name": "work", "/qubes-timezone": "Europe/Berlin", "/qubes-vm-persistence": "full", "/qubes-vm-type": "AppVM"},
    private_size=1 << 31, private_blank=False)


def test_names_replace_former_ones_and_keep_the_rest_of_hosts() -> None:
    assert inside("""
import socket
put('/etc/hosts', '127.0.0.1\\tlocalhost\\n127.0.1.1\\tqube\\n10.0.0.1 printer\\n')
identity._read_hosts()
identity._names('qube')
identity._names('work')
result = [socket.gethostname(), get('/etc/hostname'), get('/etc/hosts')]
""") == ["work", "work\n", "127.0.0.1\tlocalhost\n10.0.0.1 printer\n127.0.1.1\twork\n"]


@pytest.mark.parametrize(("zone", "link"), [
    ("Europe/Berlin", "/usr/share/zoneinfo/Europe/Berlin"), ("", "old"), ("No/Such", "old"), ("../../../etc/passwd", "old"),
    ("/etc/passwd", "old"), ("Europe", "old"), ("Europe/../Europe/Berlin", "/usr/share/zoneinfo/Europe/Berlin"),
])
def test_timezone_is_one_that_the_system_knows(zone: str, link: str) -> None:
    assert inside(f"""
tmpfs('/usr/share')
put('/usr/share/zoneinfo/Europe/Berlin')
put('/etc/passwd')
os.symlink('old', '/etc/localtime')
identity._timezone({zone!r})
result = os.readlink('/etc/localtime')
""") == link


def test_boot_id_is_the_one_given() -> None:
    assert inside("""
put('/etc/hosts', '127.0.0.1\\tlocalhost\\n')
identity._get_ready()
identity._write(f'{identity.RUN}/boot_id', '00000000-0000-4000-8000-00000000000a\\n')
result = get('/proc/sys/kernel/random/boot_id')
""") == "00000000-0000-4000-8000-00000000000a\n"


def test_markers_of_kind_persistence_and_services() -> None:
    assert inside("""
for folder in ("/run/qubes", "/run/qubes-service"):      # as _get_ready leaves them
    os.makedirs(folder, exist_ok=True)
identity._markers({'/name': 'work', '/qubes-vm-type': 'TemplateVM', '/qubes-service/cups': '1', '/qubes-service/tracker': '0',
                   '/qubes-service/deep/er': '1', '/other/crond': '1'}, 'full')
result = [sorted(os.listdir('/run/qubes')), sorted(os.listdir('/run/qubes-service'))]
""") == [["persistent-full", "this-is-templatevm"],
         ["cups", "evolution-data-server", "meminfo-writer", "qubes-update-check", "software-rendering", "updates-proxy-setup"]]


def test_clock_is_left_alone_when_it_is_right() -> None:
    """Setting it would be refused here, even as this root."""
    assert inside("import time\nidentity.set_clock(time.time_ns())\nresult = 1") == 1


def test_clock_and_entropy_that_can_not_be_set_are_errors() -> None:
    assert inside("""
result = []
for attempt in (lambda: identity.set_clock(0), lambda: libc.reseed(bytes(64)), lambda: libc.mount('/nowhere', '/etc'),
                lambda: libc.unmount('/etc'), lambda: libc.swapon('/nowhere')):
    try:
        attempt()
    except OSError as error:
        result.append(error.errno > 0)
""") == [True] * 5


# -- becoming one: what, and in which order ----------------------------------------------------------------------------------


class Steps:
    """Everything that `become` does to the system, written down instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, ready: bool = True) -> None:
        self.done: list[tuple[object, ...]] = []
        self.problems = ["no /rw"]
        monkeypatch.setattr(identity, "_ready", ["127.0.0.1 localhost\n"] if ready else [])
        monkeypatch.setattr(libc, "reseed", self._step("reseed"))
        monkeypatch.setattr(time, "clock_settime_ns", self._step("clock"))
        for name in ("_get_ready", "_write", "set_link_address", "_names", "_timezone", "_markers"):
            monkeypatch.setattr(identity, name, self._step(name))
        monkeypatch.setattr(private_volume, "mount", self._mount)

    def _step(self, name: str) -> Callable[..., None]:
        def step(*words: object) -> None:
            self.done.append((name, *words))

        return step

    def _mount(self, *words: object) -> list[str]:
        self.done.append(("mount", *words))
        return self.problems


def test_a_clone_is_reseeded_before_anything_else_and_told_everything_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    assert identity.become(WHO) == ["no /rw"]
    assert steps.done == [
        ("reseed", bytes.fromhex(WHO.entropy)),
        ("clock", time.CLOCK_REALTIME, WHO.time),
        ("_write", "/etc/machine-id", WHO.machine_id + "\n"),
        ("_write", f"{identity.RUN}/boot_id", WHO.boot_id + "\n"),
        ("_write", f"{identity.RUN}/product_uuid", "01234567-89ab-cdef-0123-456789abcdef\n"),
        ("set_link_address", "02:71:e6:d2:77:9c"),
        ("_names", "work"), ("_timezone", "Europe/Berlin"), ("_markers", WHO.qubesdb, "full"),
        ("mount", "full", WHO.private_size, WHO.qubesdb),
    ]


def test_a_guest_that_has_booted_gets_ready_after_the_reseeding(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, ready=False)
    identity.become(WHO)
    assert [step[0] for step in steps.done[:4]] == ["reseed", "clock", "_get_ready", "_write"]


def test_without_words_it_is_a_qube_whose_private_volume_alone_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    identity.become(WHO._replace(qubesdb={}))
    assert steps.done[-4:] == [("_names", "qube"), ("_timezone", ""), ("_markers", {}, "rw-only"),
                               ("mount", "rw-only", WHO.private_size, {})]


@pytest.mark.parametrize(("persistence", "blank", "waits"), [
    ("none", True, True), ("none", False, False), ("rw-only", True, False), ("full", True, False),
])
def test_only_a_disposable_with_nothing_in_its_private_volume_starts_without_it(
    monkeypatch: pytest.MonkeyPatch, persistence: str, blank: bool, waits: bool,
) -> None:
    steps = Steps(monkeypatch)
    assert volumes.can_wait(persistence, blank=blank) == waits
    who = WHO._replace(qubesdb={"/qubes-vm-persistence": persistence}, private_blank=blank)
    assert identity.become(who) == ([] if waits else ["no /rw"])
    assert ("mount" in [step[0] for step in steps.done]) != waits


@pytest.mark.parametrize("size", [0, 1, 31, 32, 64])
def test_less_entropy_than_a_key_has_is_none(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    steps = Steps(monkeypatch)
    if size < 32:
        with pytest.raises(ValueError, match="as predictable as all others"):
            identity.become(WHO._replace(entropy="ab" * size))
        assert steps.done == []
    else:
        identity.become(WHO._replace(entropy="ab" * size))
        assert steps.done[0] == ("reseed", b"\xab" * size)


def test_a_rehearsal_does_as_nobody_what_a_start_does_and_writes_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    closed: list[int] = []

    class Ran:
        process = SimpleNamespace(wait=lambda: steps.done.append(("waited",)))

        def close(self) -> None:
            closed.append(1)

    monkeypatch.setattr(identity.process, "Started", Ran)
    monkeypatch.setattr(identity.process, "start", lambda it: steps.done.append(("ran", it.user, it.command)) or Ran())
    monkeypatch.setattr(identity.process, "find_user", steps._step("find"))
    monkeypatch.setattr(identity.os, "makedirs", lambda path, **_: steps.done.append(("folder", path)))
    for name in ("_in_memory", "_localtime_in_memory"):
        monkeypatch.setattr(identity, name, steps._step(name))
    monkeypatch.setattr(volumes, "find_devices", steps._step("devices"))
    monkeypatch.setattr(libc, "sync", steps._step("sync"))
    identity.rehearse()
    twice = [step for user in ("root", "root", "user", "user") for step in (("ran", user, "true"), ("waited",))]
    assert steps.done == [
        ("_get_ready",), ("_in_memory", "/etc/machine-id", "/etc/hostname", "/etc/hosts"), ("_localtime_in_memory",),
        ("_write", "/etc/machine-id", "0" * 32 + "\n"), ("_names", "qube"), ("devices",), ("folder", "/rw"), ("find", "user"),
        *twice, ("sync",)]
    assert len(closed) == 4


def test_what_differs_in_every_clone_is_written_to_memory() -> None:
    assert inside("""
os.makedirs(identity.RUN)
put('/etc/machine-id', 'of the disk\\n', 0o444)
os.symlink('/usr/share/zoneinfo/UTC', '/etc/localtime')
identity._in_memory('/etc/machine-id')
identity._localtime_in_memory()
identity._write('/etc/machine-id', 'of the clone\\n')
said = [get('/etc/machine-id'), get(f'{identity.RUN}/machine-id'), oct(os.stat('/etc/machine-id').st_mode & 0o777),
        os.readlink('/etc/localtime'), os.readlink(f'{identity.RUN}/localtime')]
libc.unmount('/etc/machine-id')
result = [*said, get('/etc/machine-id')]
""") == ["of the clone\n", "of the clone\n", "0o444", f"{identity.RUN}/localtime", "/usr/share/zoneinfo/UTC", "of the disk\n"]


@pytest.mark.parametrize("entropy", ["", "xyz", "abc"])
def test_entropy_that_is_none_is_an_error_and_nothing_goes_on(monkeypatch: pytest.MonkeyPatch, entropy: str) -> None:
    steps = Steps(monkeypatch)
    if entropy:
        with pytest.raises(ValueError, match="hex"):
            identity.become(WHO._replace(entropy=entropy))
        assert steps.done == []
    else:
        with pytest.raises(ValueError, match="entropy"):
            identity.become(WHO._replace(entropy=entropy))
        assert steps.done == []


def test_a_reseeding_that_fails_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)

    def fails(_entropy: bytes) -> None:
        raise OSError(1, "no")

    monkeypatch.setattr(libc, "reseed", fails)
    with pytest.raises(OSError, match="no"):
        identity.become(WHO)
    assert steps.done == []


@pytest.mark.parametrize(("off", "sets"), [
    (0, False), (identity.CLOCK_TOLERANCE, False), (-identity.CLOCK_TOLERANCE, False),
    (identity.CLOCK_TOLERANCE + 1, True), (-identity.CLOCK_TOLERANCE - 1, True), (10**18, True), (-10**18, True),
])
def test_a_clock_is_set_forward_and_back_but_not_by_a_little(monkeypatch: pytest.MonkeyPatch, off: int, sets: bool) -> None:
    was_set: list[tuple[int, int]] = []
    monkeypatch.setattr(time, "time_ns", lambda: WHO.time)
    monkeypatch.setattr(time, "clock_settime_ns", lambda *words: was_set.append(words))
    identity.set_clock(WHO.time + off)
    assert was_set == ([(time.CLOCK_REALTIME, WHO.time + off)] if sets else [])


def test_what_user_space_reads_of_machine_and_boot_are_files_that_a_clone_writes_anew() -> None:
    assert inside("""
put('/etc/hosts', '127.0.0.1\\tlocalhost\\n')
product = '/tmp/product_uuid'
put(product, 'the snapshot\\n')
identity.PRODUCT_UUID = product
identity._get_ready()
nobody = [get(product), get('/proc/sys/kernel/random/boot_id'), oct(os.stat(product).st_mode & 0o777)]
identity._write(f'{identity.RUN}/product_uuid', 'this clone\\n')
result = [*nobody, get(product), os.path.isdir('/run/qubes'), os.path.isdir('/run/qubes-service')]
""") == [identity.NIL_UUID + "\n", identity.NIL_UUID + "\n", "0o400", "this clone\n", True, True]


@pytest.mark.parametrize(("said", "address"), [
    ("", "02:71:e6:d2:77:9c"), (identity.USUAL_ADDRESS, "02:71:e6:d2:77:9c"), ("00:16:3e:01:02:03", "00:16:3e:01:02:03"),
])
def test_a_link_has_the_address_that_was_given_or_one_of_its_own(said: str, address: str) -> None:
    assert identity.link_address(said, WHO.boot_id) == address


def test_the_address_is_set_on_the_one_link(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[int, bytes]] = []
    monkeypatch.setattr(identity.fcntl, "ioctl", lambda _socket, number, request: asked.append((number, request)))
    identity.set_link_address("02:71:e6:d2:77:9c")
    assert asked == [(0x8924, struct.pack("16sH14s", b"eth0", 1, bytes.fromhex("0271e6d2779c")))]
    monkeypatch.undo()
    monkeypatch.setattr(identity, "LINK", "no-such-link")
    identity.set_link_address("02:71:e6:d2:77:9c")       # no network, no trouble
    assert "stays the usual one" in capsys.readouterr().err


def test_no_two_snapshots_of_a_qube_are_one_machine() -> None:
    other = "f" * 32
    assert identity.product_uuid(WHO.machine_id) != identity.product_uuid(other) != other


def test_the_journal_of_the_snapshot_is_found_under_the_qubes_own_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(identity, "JOURNAL", str(tmp_path))
    identity.link_journal(WHO.machine_id)                # a system that keeps no journal
    (tmp_path / identity.NOBODY).mkdir()
    (tmp_path / "remote").mkdir()
    for _ in range(2):
        identity.link_journal(WHO.machine_id)
    assert os.readlink(tmp_path / WHO.machine_id) == identity.NOBODY
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(identity, "JOURNAL", str(tmp_path / "nowhere"))
    identity.link_journal(WHO.machine_id)
    assert "journalctl will find nothing" in capsys.readouterr().err

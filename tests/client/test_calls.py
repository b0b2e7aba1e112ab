"""The typed calls, awaited or not, against the real qubesd on fake parts; and every example of docs/client.md."""
from __future__ import annotations

import asyncio
import re
from pathlib import Path

import mypy.api
import pytest
from fake_qubesd import FakeQubesd, FakeWarden
from tests.examples import DOCUMENT, check_output, examples, perform

from cloison.client import aio, calls
from cloison.client.calls import Domain, State
from cloison.client.connection import Connection, NoDaemon
from cloison.client.run import run, run_service
from cloison.devicetext import Device
from cloison.errors import CloisonError, FeatureNotFound, PeerError, QubeNotFound
from cloison.wire import admin

WORK = Domain("work")


def test_properties(real: Connection) -> None:
    real.do(WORK.set_property("memory", 600))
    memory = real.do(WORK.property("memory"))
    assert (memory.typed, memory.default) == (600, False)
    real.do(WORK.set_property("include_in_backups", False))
    real.do(WORK.set_property("netvm", None))
    found = real.do(WORK.properties())
    assert (found["include_in_backups"].typed, found["netvm"].typed, found["label"].typed) == (False, None, "red")
    assert found["stubdom_mem"].typed is None
    real.do(WORK.reset_property("memory"))
    assert real.do(WORK.property("memory")).default
    real.do(Domain("net").set_property("netvm", None))
    real.do(calls.set_system_property("default_netvm", "net"))
    assert real.do(calls.system_property("default_netvm")).typed == "net"
    assert real.do(calls.system_properties())["default_netvm"].value == "net"


def test_features_tags_notes(real: Connection) -> None:
    assert real.do(WORK.feature("x")) is None
    real.do(WORK.set_feature("x", ""))
    assert (real.do(WORK.feature("x")), real.do(WORK.features())) == ("", ["x"])
    real.do(Domain("tpl").set_feature("y", "1"))
    assert (real.do(WORK.feature("y")), real.do(WORK.feature("y", with_template=True))) == (None, "1")
    for _ in range(2):
        real.do(WORK.remove_feature("x"))
        real.do(WORK.remove_tag("t"))
    real.do(WORK.add_tag("t"))
    assert "t" in real.do(WORK.tags())
    real.do(WORK.set_notes("one\ntwo"))
    assert real.do(WORK.notes()) == "one\ntwo"


def test_volumes_pools_labels(real: Connection) -> None:
    assert set(real.do(WORK.volumes())) >= {"root", "private", "volatile"}
    private = real.do(WORK.volume("private"))
    assert (private.save_on_stop, private.snap_on_start, private.is_outdated) == (True, False, False)
    real.do(WORK.resize("private", private.size + (1 << 20)))
    assert real.do(WORK.volume("private")).size == private.size + (1 << 20)
    assert real.do(WORK.revisions("private")) == []
    with pytest.raises(CloisonError, match="revision"):
        real.do(WORK.revert("private", "none"))
    assert private.pool in real.do(calls.pools())
    assert real.do(calls.pool_info(private.pool))["name"] == private.pool
    assert "red" in real.do(calls.labels())


def test_power(real: Connection) -> None:
    assert real.do(WORK.state()) == State("Halted", 0, 0)
    with pytest.raises(CloisonError):
        real.do(WORK.pause())
    real.do(Domain("net").remove())
    assert "net" not in real.do(calls.domains())


def test_firewall_and_devices(real: Connection) -> None:
    real.do(WORK.set_firewall(["action=accept dst4=192.0.2.0/24", "action=drop"]))
    assert real.do(WORK.firewall()) == ["action=accept dst4=192.0.2.0/24", "action=drop"]
    assert real.do(WORK.exposed("block")) == {}
    assert real.do(WORK.attached("block")) == []
    disk = Device("block", "net", "sda", "*")
    real.do(WORK.assign(disk, "auto-attach", {"read-only": "yes"}))
    [line] = real.do(WORK.assigned("block"))
    assert (line.device, line.mode, line.extra) == (disk, "auto-attach", {"read-only": "yes"})
    real.do(WORK.unassign(disk))
    with pytest.raises(CloisonError):
        real.do(WORK.attach(disk))
    with pytest.raises(CloisonError):
        real.do(WORK.detach(disk))


def test_failures_keep_their_class(real: Connection) -> None:
    with pytest.raises(QubeNotFound):
        real.do(Domain("nobody").start())
    with pytest.raises(QubeNotFound):
        real.do(Domain("nobody").feature("x"))     # no qube is not the same as no feature
    with pytest.raises(CloisonError, match="can't be part of a call"):
        real.do(WORK.add_tag("two words"))


@pytest.mark.parametrize("reply", [b"", b"size=1\n", b"size=1\nusage=x\nrevisions_to_keep=1\n"])
def test_a_volume_that_can_t_be_read(reply: bytes) -> None:
    with pytest.raises(PeerError, match="not a volume"):
        WORK.volume("root").read(reply)


def test_awaited(real: Connection) -> None:
    async def main() -> None:
        system = aio.Connection()
        await asyncio.gather(*(system.do(WORK.set_feature(f"f{number}", "1")) for number in range(20)))
        assert len(await system.do(WORK.features())) == 20
        assert await system.do(WORK.feature("nothing")) is None
        with pytest.raises(QubeNotFound):
            await system.do(Domain("nobody").start())

    asyncio.run(main())


def test_events_are_not_missed_once_the_context_is_entered(real: Connection) -> None:
    async def main() -> list[str]:
        system, seen = aio.Connection(), []
        async with system.events("work") as events:
            for number in range(5):
                await system.do(WORK.set_feature(f"f{number}", "1"))
            async for event in events:
                if event.event.startswith("domain-feature-set:"):
                    seen.append(event.event.partition(":")[2])
                if len(seen) == 5:
                    return seen
        return seen

    assert asyncio.run(main()) == [f"f{number}" for number in range(5)]


def test_events_of_nobody(real: Connection) -> None:
    async def main() -> None:
        async with aio.Connection().events("nobody"):
            raise AssertionError("entered")

    with pytest.raises(QubeNotFound):
        asyncio.run(main())


def test_no_daemon(root: Path) -> None:
    with pytest.raises(NoDaemon):
        asyncio.run(aio.Connection().do(calls.domains()))


def test_events_end_with_the_daemon(qubesd: FakeQubesd) -> None:
    qubesd.answers["admin.Events"] = lambda _, __: admin.event("", "connection-established")

    async def main() -> list[admin.Event]:
        async with aio.Connection().events() as events:
            return [event async for event in events]

    assert asyncio.run(main()) == []
    qubesd.answers["admin.Events"] = lambda _, __: b""
    with pytest.raises(NoDaemon):
        asyncio.run(main())


def test_running_in_a_qube(warden: FakeWarden) -> None:
    result = run(Connection(), "work", "cat; echo oops >&2; exit 3", data=b"input")
    assert result == (3, b"input", b"oops\n")
    run_service(Connection(), "work", "qubes.GetDate")
    assert "QUBESRPC qubes.GetDate+ dom0" in str(warden.commands)


def test_the_absent_answer_is_only_for_its_failure() -> None:
    call = WORK.feature("x")
    assert call.answer(FeatureNotFound("no")) is None
    assert call.answer(b"") == ""


def test_examples_of_the_document_work(real: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    real.call("dom0", "admin.vm.Create.AppVM", "tpl", b"name=sys-usb label=red")
    codes = examples(machine=False)
    assert len(codes) >= 7
    perform(codes, {"__name__": "example"})
    output = capsys.readouterr().out
    assert "600" not in output.partition("set")[0]
    for expected in ("work AppVM Halted", "there is no qube 'nobody'", "renew the certificate", "action=drop", "sys-usb:sda:*",
                     "domain-tag-add:watched", "None"):
        assert expected in output, output


def test_examples_are_typed_to_the_last_word(tmp_path: Path) -> None:
    """As a user's mypy sees the library."""
    program = tmp_path / "examples.py"
    program.write_text("\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)))
    output, errors, status = mypy.api.run(["--strict", f"--cache-dir={tmp_path}", str(program)])
    assert status == 0, output + errors


def test_examples_with_programs_work(
    qubesd: FakeQubesd, warden: FakeWarden, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a fake machine; on a real one in tests/boot/test_library.py."""
    warden.home = str(root)
    monkeypatch.chdir(root)
    codes = examples(machine=True)
    assert len(codes) >= 5
    perform(codes, {"__name__": "example", "connection": Connection(), "work": WORK})
    check_output(capsys.readouterr().out)
    assert (root / "hello.sh").stat().st_mode & 0o777 == 0o755

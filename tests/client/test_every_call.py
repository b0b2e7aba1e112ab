"""Every call of the Admin API's table is there for Python programs, as a value that a waiting and an awaiting program can send."""
from __future__ import annotations

import asyncio
from typing import Any

from cloison.admin.methods import ADMIN
from cloison.client import aio, calls, system
from cloison.client.calls import AdminCall, Domain
from cloison.client.connection import Connection
from cloison.devicetext import Device
from cloison.errors import CloisonError
from cloison.model.devices import ADDED, CLASSES

WORK = Domain("work")
SYSTEM: list[AdminCall[Any]] = [
    calls.domains(), calls.labels(), calls.pools(), calls.pool_info("varlibqubes"), calls.system_properties(),
    calls.system_property("default_netvm"), calls.set_system_property("default_netvm", None), system.qube_classes(),
    system.device_classes(), system.label_colour("red"), system.label_index("red"), system.create_label("pink", "0xff00aa"),
    system.remove_label("pink"), system.property_names(), system.property_default("stats_interval"),
    system.property_help("updatevm"), system.reset_property("stats_interval"), system.pool_drivers(),
    system.pool_usage("varlibqubes"), system.pool_volumes("varlibqubes"),
    system.add_pool("more", "qcow2", {"dir_path": "/proc/nowhere"}), system.remove_pool("more"),
    system.set_pool_revisions("varlibqubes", 2), system.set_pool_ephemeral("varlibqubes", True),
]
QUBE: list[AdminCall[Any]] = [
    WORK.start(), WORK.state(), WORK.pause(), WORK.unpause(), WORK.suspend(), WORK.resume(), WORK.console(), WORK.kill(),
    WORK.shutdown(force=True), WORK.new_disposable(), WORK.property_names(), WORK.properties(), WORK.property("memory"),
    WORK.property_default("memory"), WORK.property_help("memory"), WORK.set_property("memory", 500), WORK.reset_property("memory"),
    WORK.features(), WORK.feature("x"), WORK.feature("x", with_template=True),
    *(WORK.inherited_feature("x", of) for of in ("Netvm", "AdminVM", "TemplateAndAdminVM")), WORK.set_feature("x", "1"),
    WORK.remove_feature("x"), WORK.tags(), WORK.has_tag("t"), WORK.add_tag("t"), WORK.remove_tag("t"), WORK.notes(),
    WORK.set_notes("n"),
    WORK.volumes(), WORK.volume("private"), WORK.revisions("private"), WORK.clear("private"), WORK.revert("private", "1"),
    WORK.resize("private", 3 << 30), WORK.clone_from("private"), WORK.clone_to("private", "x" * 32),
    WORK.set_volume("private", "revisions_to_keep", 2), WORK.set_volume("private", "rw", True),
    WORK.set_volume("volatile", "ephemeral", True), WORK.firewall(), WORK.set_firewall(["action=accept"]), WORK.reload_firewall(),
    WORK.denied_interfaces(), WORK.deny_interfaces(["b******"]), WORK.allow_interfaces(["b******"]),
]
# What takes more than one call, or answers with a stream, is a function or a class of its own.
ELSEWHERE = {
    "admin.Events": "client.events, aio.Connection.events", "admin.vm.Stats": "Connection.stream, aio.Connection.events",
    "cloison.Disposable": "client.disposables.Disposable", "admin.backup.": "Connection.call, until there are backups",
    "admin.vm.Create.": "client.create.create", "admin.vm.CreateInPool.": "client.create.create",
}


def of_devices(devclass: str) -> list[AdminCall[Any]]:
    device = Device(devclass, "dom0", "sda")
    return [WORK.exposed(devclass), WORK.attached(devclass), WORK.assigned(devclass), WORK.attach(device), WORK.detach(device),
            WORK.assign(device, "required"), WORK.set_assignment(device, "auto-attach"), WORK.unassign(device)]


EVERY = [*SYSTEM, *QUBE, *(call for devclass in (*CLASSES, *ADDED) for call in of_devices(devclass)), WORK.remove()]


def test_no_call_of_the_table_is_missing() -> None:
    reached = {call.method for call in EVERY}
    assert reached <= ADMIN.keys()
    missing = {name for name in ADMIN if name not in reached and not name.startswith(tuple(ELSEWHERE))}
    assert missing == set()


def test_each_is_understood_by_qubesd_and_its_answer_by_us(real: Connection) -> None:
    """Refusals are answers, too: what counts is that nobody finds the form of a call or of a reply wrong."""
    real.do(WORK.set_feature("seen", "1"))
    for call in EVERY:
        try:
            real.do(call)
        except CloisonError as error:
            assert type(error).__name__ not in ("BadRequest", "PeerError", "ServerError"), (call.method, error)


def test_each_can_be_awaited(real: Connection) -> None:
    async def scenario() -> None:
        connection = aio.Connection(real.paths)
        for call in EVERY:
            try:
                await connection.do(call)
            except CloisonError as error:
                assert type(error).__name__ not in ("BadRequest", "PeerError", "ServerError"), (call.method, error)

    asyncio.run(scenario())


def test_answers_have_their_types(real: Connection) -> None:
    assert "AppVM" in real.do(system.qube_classes()) and "block" in real.do(system.device_classes())
    assert (real.do(system.label_colour("red")), real.do(system.label_index("red"))) == ("0xcc0000", 1)
    assert real.do(system.property_default("stats_interval")) == "3" and real.do(system.property_default("default_kernel")) is None
    assert "dir_path" in real.do(system.pool_drivers())["qcow2"]
    usage = real.do(system.pool_usage("varlibqubes"))
    assert 0 < usage["data_usage"] <= usage["data_size"]
    assert "appvms/work/private" in real.do(system.pool_volumes("varlibqubes"))
    assert real.do(WORK.property_default("memory")) == "400" and "memory" in real.do(WORK.property_names())
    assert real.do(WORK.has_tag("t")) is False
    real.do(WORK.add_tag("t"))
    assert real.do(WORK.has_tag("t")) is True
    real.do(WORK.deny_interfaces(["b******", "u03****"]))
    assert real.do(WORK.denied_interfaces()) == ["b******", "u03****"]
    real.do(WORK.allow_interfaces(["u03****"]))
    assert real.do(WORK.denied_interfaces()) == ["b******"]
    before = real.do(WORK.volume("private"))
    real.do(WORK.set_volume("private", "revisions_to_keep", 3))
    token = real.do(WORK.clone_from("private"))
    real.do(Domain("net").clone_to("private", token))
    assert real.do(WORK.volume("private")).revisions_to_keep == 3 != before.revisions_to_keep
    real.do(system.create_label("pink", "0xff00aa"))
    assert "pink" in real.do(calls.labels())
    real.do(system.remove_label("pink"))

"""What a call is refused for, and as which exception: the cases that a run beside the reference's own daemon has shown.

Each row: the call (method, destination, argument, payload), and the class on the wire, empty for a call that is served.
"""
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cloison.daemon.app import App
from cloison.daemon.fake import Answer, ask, fake_app

SYSTEM = (
    ("admin.vm.Create.TemplateVM", "dom0", "", "name=tpl label=black"),
    ("admin.property.Set", "dom0", "default_template", "tpl"),
    ("admin.vm.Create.AppVM", "dom0", "", "name=sys-net label=red"),
    ("admin.vm.property.Set", "sys-net", "netvm", ""),
    ("admin.vm.property.Set", "sys-net", "provides_network", "True"),
    ("admin.property.Set", "dom0", "default_netvm", "sys-net"),
    ("admin.vm.Create.AppVM", "dom0", "", "name=work label=blue"),
    ("admin.vm.Create.AppVM", "dom0", "", "name=dvm label=red"),
    ("admin.vm.property.Set", "dvm", "template_for_dispvms", "True"),
    ("admin.property.Set", "dom0", "default_dispvm", "dvm"),
    ("admin.vm.Create.RemoteVM", "dom0", "", "name=rem label=gray"),
)
NO_NAMES = ["", "9x", "a b", "@adminvm", "Domain-0", "none", "default", "x-dm", "a" * 32]


async def _ask_one(root: str, *call: str) -> Answer:
    app: App = await fake_app(root)
    for step in SYSTEM:
        made = await ask(app, *step)
        assert not made.failure, (step, made)
    answer = await ask(app, *call)
    app.parts.store.close()
    return answer


@pytest.mark.parametrize("dest", NO_NAMES)
def test_a_destination_that_can_be_no_name_is_a_bad_value(tmp_path: Path, dest: str) -> None:
    assert asyncio.run(_ask_one(str(tmp_path), "admin.vm.List", dest)).failure == "QubesValueError"


@pytest.mark.parametrize("name", ["9x", "a b", "none", "a" * 32])
def test_a_reference_that_can_be_no_name_is_a_bad_value(tmp_path: Path, name: str) -> None:
    assert asyncio.run(_ask_one(str(tmp_path), "admin.vm.property.Set", "work", "guivm", name)).failure == "QubesValueError"


@pytest.mark.parametrize(("call", "failure"), [
    # A qube elsewhere can be nothing to a qube here.
    (("admin.vm.property.Set", "work", "guivm", "rem"), "QubesPropertyValueError"),
    (("admin.vm.property.Set", "rem", "relayvm", "rem"), "QubesPropertyValueError"),
    (("admin.property.Set", "dom0", "default_audiovm", "rem"), "QubesPropertyValueError"),
    (("admin.property.Set", "dom0", "default_netvm", "rem"), "QubesPropertyValueError"),
    # Going back to a default is a change as any other.
    (("admin.vm.property.Reset", "dvm", "template_for_dispvms"), "QubesVMInUseError"),
    (("admin.vm.property.Reset", "sys-net", "netvm"), "QubesValueError"),
    (("admin.vm.property.Reset", "work", "netvm"), ""),
    # What uses the default netvm can't be it; dom0 has no network at all.
    (("admin.property.Set", "dom0", "default_netvm", "tpl"), "QubesPropertyValueError"),
    (("admin.property.Set", "dom0", "default_netvm", "work"), "QubesPropertyValueError"),
    (("admin.property.Set", "dom0", "default_netvm", "dom0"), "QubesPropertyValueError"),
    # A label is named or numbered in calls about labels; a property takes the id of qubes.xml, too.
    (("admin.label.Get", "dom0", "label-1"), "QubesLabelNotFoundError"),
    (("admin.label.Index", "dom0", "a~b"), "QubesInvalidLabelError"),
    (("admin.label.Remove", "dom0", "a/b"), "QubesInvalidLabelError"),
    (("admin.label.Get", "dom0", "1"), ""),
    (("admin.vm.property.Set", "work", "label", "label-1"), ""),
    (("admin.vm.property.Set", "work", "label", "red\0blue"), "QubesValueError"),
    # The words of a creation are checked for dom0's class, too.
    (("admin.vm.Create.AdminVM", "dom0", "tpl", "name=x label=red"), "ProtocolError"),
    (("admin.vm.Create.AdminVM", "dom0", "", "name=x"), "ProtocolError"),
    (("admin.vm.Create.AdminVM", "dom0", "", "name=9x label=red"), "QubesValueError"),
    (("admin.vm.Create.AdminVM", "dom0", "", "name=x label=1"), "QubesInvalidLabelError"),
    (("admin.vm.Create.AdminVM", "dom0", "", "name=x label=red"), "QubesPropertyValueError"),
    # A pool that is not there is told of before a template that is none.
    (("admin.vm.CreateInPool.DispVM", "dom0", "work", "name=x label=red pool=nope"), "QubesException"),
    (("admin.vm.CreateInPool.DispVM", "dom0", "work", "name=x label=red pool=varlibqubes"), "QubesValueError"),
    # A snapshot can't be told where to be, not even where it is anyway.
    (("admin.vm.CreateInPool.AppVM", "dom0", "tpl", "name=x label=red pool:root=varlibqubes"), "QubesException"),
    (("admin.vm.CreateInPool.AppVM", "dom0", "tpl", "name=x label=red pool:private=varlibqubes"), ""),
    # A volume that is not there is nobody's business, whatever else is wrong; kernel modules never change.
    (("admin.vm.volume.Resize", "work", "nope", "x"), "PermissionDenied"),
    (("admin.vm.volume.Set.revisions_to_keep", "work", "kernel", "1"), "QubesValueError"),
    (("admin.vm.volume.Set.revisions_to_keep", "work", "kernel", "0"), ""),
    (("admin.vm.volume.Set.rw", "work", "kernel", "True"), "QubesValueError"),
    (("admin.vm.volume.Set.rw", "work", "kernel", "no"), ""),
    (("admin.vm.volume.Set.ephemeral", "work", "kernel", "False"), "QubesValueError"),
    (("admin.vm.volume.CloneFrom", "work", "volatile"), ""),
    (("admin.vm.volume.CloneTo", "work", "private", "\u00e9"), "ProtocolError"),
    (("admin.vm.volume.Revert", "work", "root", "a b"), "ProtocolError"),
    # Devices: what is asked for is named as it is listed, by qubes that are there; the mode is looked at first.
    (("admin.vm.device.block.Assigned", "work", "sda"), "ProtocolError"),
    (("admin.vm.device.block.Attached", "work", "sda"), "ProtocolError"),
    (("admin.vm.device.block.Attached", "work", "nope+sda"), ""),
    (("admin.vm.device.pci.Assigned", "work", "dom0+00_1f.2"), ""),
    (("admin.vm.device.block.Set.assignment", "work", "nope+sda+_", "x"), "QubesUnrecognizedDeviceAssignmentMode"),
    (("admin.vm.device.block.Unassign", "rem", "work+sda+_"), "QubesException"),
    (("admin.vm.device.block.Detach", "rem", "work+sda+_"), "QubesException"),
    (("admin.vm.device.block.Attach", "rem", "work+sda+_"), "QubesException"),
    (("admin.vm.device.denied.Add", "work", "", "\u00e9"), "ProtocolError"),
    # A pool of kernels has no such settings, and need not be told so.
    (("admin.pool.Set.revisions_to_keep", "dom0", "linux-kernel", "x"), "ProtocolError"),
    (("admin.pool.Set.revisions_to_keep", "dom0", "linux-kernel", "1"), "QubesValueError"),
    (("admin.pool.Set.revisions_to_keep", "dom0", "linux-kernel", "0"), ""),
    (("admin.pool.Set.ephemeral_volatile", "dom0", "linux-kernel", "maybe"), "ProtocolError"),
    (("admin.pool.Set.ephemeral_volatile", "dom0", "linux-kernel", "no"), ""),
    # No backups yet: so no profile is there, and none is being used.
    (("admin.backup.Info", "dom0", "weekly"), "QubesBackupProfileNotFoundError"),
    (("admin.backup.Execute", "dom0", "a/b"), "ProtocolError"),
    (("admin.backup.Cancel", "dom0", "weekly"), "QubesException"),
    # Words of a shutdown may come twice; they are looked at before the qube is.
    (("admin.vm.Shutdown", "work", "force+force"), "QubesVMNotStartedError"),
    (("admin.vm.Shutdown", "work", "force+now"), "ProtocolError"),
    # What preloading demands is demanded of those that can have disposables.
    (("admin.vm.feature.Set", "tpl", "preload-dispvm-max", "x"), ""),
    (("admin.vm.feature.Set", "dvm", "preload-dispvm-max", "x"), "QubesValueError"),
    (("admin.vm.feature.Set", "dom0", "preload-dispvm-delay", "x"), "QubesValueError"),
    (("admin.vm.feature.Set", "tpl", "preload-dispvm-delay", "x"), ""),
    # A qube elsewhere has no notes here, and its features mean nothing to the core.
    (("admin.vm.notes.Get", "rem"), "QubesVMError"),
    (("admin.vm.notes.Set", "rem", "", "x"), "QubesVMError"),
    (("admin.vm.feature.Set", "rem", "vm-config.", "x"), ""),
    # What is sent is looked at before whose it is to be.
    (("admin.vm.notes.Set", "rem", "", "x" * 256_001), "ProtocolError"),
    (("admin.vm.firewall.Set", "rem", "", "action=perhaps"), "QubesValueError"),
    (("admin.vm.firewall.Set", "rem", "", "action=accept comment=\u00e9"), "ProtocolError"),
    (("admin.vm.firewall.Set", "rem", "", "action=accept"), "QubesVMError"),
    (("admin.vm.device.block.Assign", "rem", "work+sda", "mode='x'"), "ProtocolError"),
    (("admin.vm.device.block.Assign", "rem", "work+sda", "mode='required'"), "QubesException"),
    (("admin.vm.device.block.Attach", "rem", "work+sda", "frontend_domain='nope'"), "ProtocolError"),
    # The memory to leave free is dom0's to say; elsewhere that feature is any feature.
    (("admin.vm.feature.Set", "dom0", "preload-dispvm-threshold", "x"), "QubesValueError"),
    (("admin.vm.feature.Set", "dvm", "preload-dispvm-threshold", "x"), ""),
    (("admin.vm.feature.Set", "work", "vm-config.", "x"), "QubesValueError"),
])
def test_refusals(tmp_path: Path, call: tuple[str, ...], failure: str) -> None:
    answer = asyncio.run(_ask_one(str(tmp_path), *call))
    assert answer.failure == failure, answer


def test_a_token_of_a_volume_that_keeps_nothing_is_good_for_nothing(tmp_path: Path) -> None:
    async def run() -> Answer:
        app = await fake_app(str(tmp_path))
        for step in SYSTEM:
            await ask(app, *step)
        token = await ask(app, "admin.vm.volume.CloneFrom", "work", "volatile")
        answer = await ask(app, "admin.vm.volume.CloneTo", "dvm", "private", token.content)
        app.parts.store.close()
        return answer

    assert asyncio.run(run()).failure == "StoragePoolException"


def test_a_pools_revisions_are_for_volumes_that_are_made_after_it(tmp_path: Path) -> None:
    async def run() -> list[str]:
        app = await fake_app(str(tmp_path))
        for step in (*SYSTEM, ("admin.pool.Set.revisions_to_keep", "dom0", "varlibqubes", "4"),
                     ("admin.vm.Create.AppVM", "dom0", "", "name=late label=red")):
            made = await ask(app, *step)
            assert not made.failure, (step, made)
        answers = [await ask(app, "admin.vm.volume.Info", qube, "private") for qube in ("work", "late")]
        app.parts.store.close()
        return [answer.content for answer in answers]

    early, late = asyncio.run(run())
    assert "\nrevisions_to_keep=1\n" in early
    assert "\nrevisions_to_keep=4\n" in late


def test_notes_hold_what_may_be_shown(tmp_path: Path) -> None:
    async def run() -> str:
        app = await fake_app(str(tmp_path))
        await ask(app, "admin.vm.Create.StandaloneVM", "dom0", "", "name=alone label=red")
        set_ = await ask(app, "admin.vm.notes.Set", "alone", "", "a\tb\n\u00e9\u202e\U0001f4a9\r")
        assert not set_.failure
        notes = await ask(app, "admin.vm.notes.Get", "alone")
        app.parts.store.close()
        return notes.content

    assert asyncio.run(run()) == "a\tb\n\u00e9___"


def test_updates_of_a_qube_elsewhere_are_not_known_here(tmp_path: Path) -> None:
    async def run() -> Answer:
        app = await fake_app(str(tmp_path))
        await ask(app, "admin.vm.Create.RemoteVM", "dom0", "", "name=rem label=gray")
        answer = await ask(app, "qubes.NotifyUpdates", "dom0", "", "2", source="rem", socket="qubesd.misc.sock")
        app.parts.store.close()
        return answer

    assert asyncio.run(run()).failure == "QubesVMError"


@pytest.mark.parametrize(("call", "failure"), [
    (("admin.vm.property.Set", "work", "maxmem", "700"), "QubesVMNotHaltedError"),
    (("admin.vm.property.Set", "work", "maxmem", "0"), ""),            # as it is
    (("admin.vm.feature.Set", "work", "service.meminfo-writer", ""), ""),
    (("admin.vm.property.Set", "work", "template", "tpl"), "QubesVMNotHaltedError"),
    (("admin.vm.property.Set", "dvm", "template", "tpl"), ""),
    (("admin.vm.property.Set", "dvm", "template", "other"), "QubesVMInUseError"),
])
def test_what_a_running_qube_holds_fast(tmp_path: Path, call: tuple[str, ...], failure: str) -> None:
    """`work` runs, and a disposable of `dvm`."""
    async def run() -> Answer:
        app = await fake_app(str(tmp_path))
        for step in (*SYSTEM, ("admin.vm.Create.TemplateVM", "dom0", "", "name=other label=black"),
                     ("admin.vm.Create.DispVM", "dom0", "dvm", "name=disposable label=red"),
                     ("admin.vm.Start", "work"), ("admin.vm.Start", "disposable")):
            made = await ask(app, *step)
            assert not made.failure, (step, made)
        answer = await ask(app, *call)
        app.parts.store.close()
        return answer

    assert asyncio.run(run()).failure == failure

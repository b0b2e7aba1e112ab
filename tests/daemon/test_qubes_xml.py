"""A qubes.xml of Qubes OS taken over by a daemon, with what it says about it, and what a crash in between costs."""
from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
from tests.daemon.test_crash import call, daemon, inventory
from tests.patience import PATIENCE

from cloison.daemon import qubes_xml
from cloison.daemon.app import App
from cloison.daemon.fake import Answer, ask, fake_app
from cloison.errors import CloisonError

GOLDEN = Path(__file__).parents[1] / "golden" / "qubes-4.4.xml"
INTERNAL = "qubesd.internal.sock"


async def take(app: App, path: Path | str) -> Answer:
    return await ask(app, "internal.cloison.ImportQubesXml", payload=str(path), socket=INTERNAL)


def run(tmp_path: Path, xml: bytes) -> tuple[Answer, list[str], Answer]:
    """The import's answer, the qubes afterwards, and the export."""
    file = tmp_path / "qubes.xml"
    file.write_bytes(xml)

    async def scenario() -> tuple[Answer, list[str], Answer]:
        app = await fake_app(str(tmp_path))
        answer = await take(app, file)
        listing = (await ask(app, "admin.vm.List")).content.splitlines()
        export = await ask(app, "internal.cloison.ExportQubesXml", socket=INTERNAL)
        await app.machines.close()
        await app.parts.wardens.close()
        app.parts.store.close()
        return answer, [line.split()[0] for line in listing], export

    return asyncio.run(scenario())


def test_a_store_of_qubes_os_opens(tmp_path: Path) -> None:
    answer, qubes, export = run(tmp_path, GOLDEN.read_bytes())
    assert not answer.failure, answer
    assert qubes == ["dom0", "tpl-a", "vault"]
    assert "are made empty: restore a backup to fill them" in answer.content
    second = tmp_path / "second"
    second.mkdir()
    again, qubes_again, _ = run(second, export.content.encode())
    assert not again.failure
    assert qubes_again == qubes


THIN = b"""<qubes><pools><pool name="vm-pool" driver="lvm_thin" volume_group="qubes_dom0" thin_pool="vm-pool"/>
<pool name="linux-kernel" driver="linux-kernel" dir_path="/var/lib/qubes/vm-kernels"/></pools>
<properties><property name="default_pool">vm-pool</property></properties><domains>
<domain id="domain-1" class="TemplateVM"><properties><property name="name">tpl</property><property name="label">black</property>
</properties><volume-config>
<volume name="root" pool="vm-pool" vid="qubes_dom0/vm-tpl-root" rw="True" save_on_stop="True" size="20000000000"/>
<volume name="private" pool="vm-pool" vid="qubes_dom0/vm-tpl-private" rw="True" save_on_stop="True" size="2147483648"/>
<volume name="volatile" pool="vm-pool" vid="qubes_dom0/vm-tpl-volatile" rw="True" size="10737418240"/>
<volume name="kernel" pool="linux-kernel" vid="6.6.1"/></volume-config></domain>
<domain id="domain-2" class="AppVM"><properties><property name="name">work</property><property name="label">blue</property>
<property name="template">tpl</property></properties><volume-config>
<volume name="root" pool="vm-pool" vid="qubes_dom0/vm-work-root" rw="True" snap_on_start="True" size="20000000000"
 source="qubes_dom0/vm-tpl-root"/>
<volume name="private" pool="vm-pool" vid="qubes_dom0/vm-work-private" rw="True" save_on_stop="True" size="2147483648"/>
<volume name="volatile" pool="vm-pool" vid="qubes_dom0/vm-work-volatile" rw="True" size="10737418240"/>
<volume name="kernel" pool="linux-kernel" vid="6.6.1"/></volume-config></domain></domains></qubes>"""


def test_volumes_of_pools_that_are_not_here_find_a_place(tmp_path: Path) -> None:
    file = tmp_path / "qubes.xml"
    file.write_bytes(THIN)

    async def scenario() -> None:
        app = await fake_app(str(tmp_path))
        answer = await take(app, file)
        assert answer.content.splitlines() == [
            "pool vm-pool of driver lvm_thin is not taken over: 6 volumes are made in varlibqubes",
            "property default_pool is unset now: pool vm-pool is not taken over",
            "the disks of 2 qubes are made empty: restore a backup to fill them",
            "no firewall.xml is beside the qubes.xml: each qube may connect to all until its rules are set"]
        info = (await ask(app, "admin.vm.volume.Info", "work", "root")).content
        assert "pool=varlibqubes\nvid=appvms/work/root\nsize=20000000000\n" in info
        assert "source=vm-templates/tpl/root\n" in info
        started = await ask(app, "admin.vm.Start", "work")
        assert not started.failure, started
        assert (await take(app, file)).failure == "QubesException"
        await app.machines.close()
        await app.parts.wardens.close()
        app.parts.store.close()

    asyncio.run(scenario())


RULES = b"""<firewall version="2"><rules>
<rule><properties><property name="action">accept</property><property name="dsthost">10.0.0.0/8</property></properties></rule>
<rule><properties><property name="action">drop</property></properties></rule></rules></firewall>"""


def beside(folder: Path, **files: bytes) -> Path:
    """A qubes.xml with files of the qube `work` and its template, such as `firewall.xml`, with `_` for the point."""
    (folder / "qubes.xml").write_bytes(THIN)
    for group, name in (("appvms", "work"), ("vm-templates", "tpl")):
        place = folder / group / name
        place.mkdir(parents=True)
        for file, content in files.items():
            (place / file.replace("_", ".")).write_bytes(content)
    (folder / "appvms" / "no qube").mkdir()
    return folder / "qubes.xml"


def test_rules_and_notes_beside_it_are_taken_along(tmp_path: Path) -> None:
    file = beside(tmp_path, firewall_xml=RULES, notes_txt="hé\x1b[31m\n".encode())

    async def scenario() -> None:
        app = await fake_app(str(tmp_path / "root"))
        answer = await take(app, file)
        assert not answer.failure and "connect to all" not in answer.content, answer
        for qube in ("work", "tpl"):
            assert (await ask(app, "admin.vm.firewall.Get", qube)).content == "action=accept dst4=10.0.0.0/8\naction=drop\n"
            assert (await ask(app, "admin.vm.notes.Get", qube)).content == "hé_[31m\n"
        app.parts.store.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("name", "content"), [
    ("firewall_xml", b""), ("firewall_xml", b"<firewall version='3'/>"), ("firewall_xml", RULES.replace(b"drop", b"perhaps")),
    ("firewall_xml", b" " * ((2 << 20) + 1)), ("notes_txt", b"\xff"), ("notes_txt", b"x" * 256_001),
])
def test_bad_ones_beside_it_are_named_and_nothing_is_taken(tmp_path: Path, name: str, content: bytes) -> None:
    file = beside(tmp_path, **{name: content})

    async def scenario() -> None:
        app = await fake_app(str(tmp_path / "root"))
        answer = await take(app, file)
        assert answer.failure == "QubesException", answer
        assert re.search(rf"(vm-templates/tpl|appvms/work)/{name.replace('_', '[.]')}: ", answer.content), answer
        assert list(app.system.qubes) == ["dom0"]
        app.parts.store.close()

    asyncio.run(scenario())


def test_what_is_no_file_beside_it_is_not_read(tmp_path: Path) -> None:
    file = beside(tmp_path)
    os.mkfifo(tmp_path / "appvms" / "work" / "notes.txt")

    async def scenario() -> None:
        app = await fake_app(str(tmp_path / "root"))
        answer = await take(app, file)
        assert "notes.txt is not a file" in answer.content and list(app.system.qubes) == ["dom0"]
        app.parts.store.close()

    asyncio.run(scenario())


def test_all_of_them_together_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = beside(tmp_path, notes_txt=b"x" * 100)
    monkeypatch.setattr(qubes_xml, "MAX_BESIDE", 200)
    assert len(qubes_xml.read(str(file)).beside) == 2
    monkeypatch.setattr(qubes_xml, "MAX_BESIDE", 199)
    with pytest.raises(CloisonError, match="more than 199 bytes"):
        qubes_xml.read(str(file))


@pytest.mark.parametrize("xml", [b"", b"<qubes", b"<!DOCTYPE x><qubes/>", THIN.replace(b"tpl</property>", b"no</property>", 1)])
def test_a_refused_file_changes_nothing(tmp_path: Path, xml: bytes) -> None:
    answer, qubes, _ = run(tmp_path, xml)
    assert answer.failure == "QubesException"
    assert qubes == ["dom0"]


@pytest.mark.parametrize("path", ["", "relative", "/", "/nowhere/at/all", "/dev/zero", "/" + "x" * 5000])
def test_a_bad_path_is_one_clear_error(tmp_path: Path, path: str) -> None:
    async def scenario() -> Answer:
        app = await fake_app(str(tmp_path))
        answer = await take(app, path)
        app.parts.store.close()
        return answer

    answer = asyncio.run(scenario())
    assert answer.failure in ("ProtocolError", "QubesException")
    assert "\n" not in answer.content


@pytest.mark.parametrize("fault", ["import:after-store", "import:after-volumes"])
def test_killed_in_between_the_next_daemon_goes_on(tmp_path: Path, fault: str) -> None:
    file = tmp_path / "qubes.xml"
    file.write_bytes(THIN)
    with daemon(tmp_path, fault) as process:
        assert call(tmp_path, "internal.cloison.ImportQubesXml", "dom0", str(file), socket_name=INTERNAL) is None
        assert process.wait(PATIENCE) == -9
    with daemon(tmp_path):
        listing = call(tmp_path, "admin.vm.List", "dom0")
        assert isinstance(listing, str)
        assert [line.split()[0] for line in listing.splitlines()] == ["dom0", "tpl", "work"]
        assert call(tmp_path, "admin.vm.Start", "work") == ""
        assert call(tmp_path, "admin.vm.Kill", "work") == ""
        assert {name for name in inventory(tmp_path) if name.startswith("appvms/work/private")}

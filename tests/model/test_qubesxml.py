"""qubes.xml: a file that Qubes OS 4.4 wrote, our own round trip, migrations, and files that want to do harm."""
from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloison.daemon.fake import KERNEL, FakeHost, fake_app
from cloison.devicetext import Device
from cloison.model import creation, qubesxml, qubesxml_elements, qubesxml_export
from cloison.model.catalogue import SYSTEM
from cloison.model.creation import Birth
from cloison.model.devices import Assignment
from cloison.model.domains import READY, REMOVING, System
from cloison.model.labels import DEFAULTS
from cloison.model.qubes import new_system
from cloison.model.qubesxml_elements import BadQubesXml
from cloison.model.volumes import Pool

GOLDEN = Path(__file__).parents[1] / "golden" / "qubes-4.4.xml"


def empty() -> System:
    return new_system(FakeHost())


def loaded(text: str | bytes) -> tuple[System, list[str]]:
    system = empty()
    remarks = qubesxml.load(system, text.encode() if isinstance(text, str) else text)
    return system, remarks


def facts(system: System) -> object:
    """All that the file holds."""
    return (
        list(system.labels.values()), list(system.pools.values()), system.values,
        {name: (qube.klass, qube.uuid, qube.qid, qube.values, list(qube.features.items()), list(qube.tags),
                list(qube.volumes.values()), qube.assignments) for name, qube in system.qubes.items()},
    )


# -- a file of Qubes OS --------------------------------------------------------------------------------------------------


def test_a_file_of_qubes_os_is_read_whole() -> None:
    system, remarks = loaded(GOLDEN.read_bytes())
    assert remarks == ["the system: property default_kernel is unset now: kernel 'None' is not installed"]
    assert list(system.qubes) == ["dom0", "tpl-a", "vault"]
    vault = system.qubes["vault"]
    assert (vault.klass, vault.qid, vault.uuid) == ("AppVM", 2, "3d9b3774-645e-4aa3-9d42-b91962e028a7")
    assert vault.template is system.qubes["tpl-a"]
    assert vault.netvm is None and not vault.is_default("netvm")
    assert vault.get("label") == "gray"
    assert vault.features["service.crond"] == "1" and list(vault.tags) == ["audiovm-dom0", "sample-tag", "guivm-dom0"]
    root, private = vault.volumes["root"], vault.volumes["private"]
    assert (root.source, root.snap_on_start, root.size) == ("vm-templates/tpl-a/root", True, 10737418240)
    assert (private.save_on_stop, private.size, private.revisions_to_keep) == (True, 2097152, 1)
    assert system.pools["varlibqubes"].config["dir_path"] == "/var/lib/qubes"


def test_what_was_read_is_written_in_the_same_form() -> None:
    system, _ = loaded(GOLDEN.read_bytes())
    system.store_value("default_kernel", "None")         # that system had none installed

    def canonical(text: bytes) -> str:
        return ElementTree.canonicalize(text, strip_text=True)

    assert canonical(qubesxml_export.export(system)) == canonical(GOLDEN.read_bytes())


def test_a_load_is_one_set_of_rows_and_can_be_undone() -> None:
    system = empty()
    system.journal.put("labels", SYSTEM, system.labels, "mine", DEFAULTS[0])
    system.put_pool(Pool("varlibqubes", "qcow2", {"dir_path": "/data"}))
    system.dom0.store_value("label", "mine")
    system.journal.clear()
    before = repr(facts(system))
    remarks = qubesxml.load(system, GOLDEN.read_bytes())
    assert "pool varlibqubes is this system's own, of driver qcow2 instead of file-reflink" in remarks
    assert system.pools["varlibqubes"].driver == "qcow2"
    assert "mine" not in system.labels and system.dom0.get("label") == "black"
    assert {row.table for row in system.journal.rows} == {
        "labels", "pools", "globals", "qubes", "properties", "features", "tags", "volumes"}
    assert system.journal.events == []
    system.journal.undo()
    assert repr(facts(system)) == before


def test_only_into_a_system_without_qubes() -> None:
    system, _ = loaded(GOLDEN.read_bytes())
    with pytest.raises(BadQubesXml, match="without qubes"):
        qubesxml.load(system, GOLDEN.read_bytes())


# -- round trip ----------------------------------------------------------------------------------------------------------


def furnished() -> System:
    system = empty()
    for label in DEFAULTS:
        system.labels[label.name] = label
    system.pools["varlibqubes"] = Pool("varlibqubes", "qcow2", {"dir_path": "/data/\"a\"&<b>", "revisions_to_keep": "2"})
    system.pools["linux-kernel"] = Pool("linux-kernel", "linux-kernel", {"dir_path": "/kernels"})
    system.values.update(default_pool_kernel="linux-kernel", default_kernel=KERNEL)
    system.dom0.values["label"] = "black"
    births = [
        Birth("TemplateVM", "tpl", "black", system.host.new_uuid(), READY),
        Birth("AppVM", "sys-net", "red", system.host.new_uuid(), READY, template="tpl"),
        Birth("AppVM", "work", "blue", system.host.new_uuid(), READY, template="tpl", tags=("created-by-dom0",)),
        Birth("StandaloneVM", "alone", "green", system.host.new_uuid(), READY),
        Birth("RemoteVM", "far", "gray", system.host.new_uuid(), READY),
    ]
    for birth in births:
        creation.create(system, birth)
    work, net = system.qubes["work"], system.qubes["sys-net"]
    net.set("netvm", None)
    net.set("provides_network", True)
    system.set("default_netvm", "sys-net")
    work.set("template_for_dispvms", True)
    system.set("default_dispvm", "work")
    creation.create(system, Birth("DispVM", "disp7", "red", system.host.new_uuid(), READY, template="work", dispid=7))
    return system


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from("\n\t\r"), max_size=30)
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
NAMES = st.text("abcz.-_", min_size=1, max_size=8)


@settings(max_examples=60)
@given(
    texts=st.dictionaries(st.sampled_from(["work", "alone", "tpl", "disp7"]), TEXT, max_size=4),
    feature_values=st.dictionaries(NAMES, PRINTABLE, max_size=5),
    tags=st.lists(st.text("aZ9_-", min_size=1, max_size=9), max_size=4),
    options=st.dictionaries(
        st.text("ab-", min_size=1, max_size=5), PRINTABLE.map(lambda each: each.replace("\\", "")), max_size=3,
    ),
    netvm=st.sampled_from([None, "sys-net"]), memory=st.integers(1, 2**40), revisions=st.none() | st.integers(-1, 99),
)
def test_a_model_survives_export_and_load(
    *, texts: dict[str, str], feature_values: dict[str, str], tags: list[str], options: dict[str, str], netvm: str | None,
    memory: int, revisions: int | None,
) -> None:
    system = furnished()
    for name, text in texts.items():
        system.qubes[name].set_text("kernelopts", text)
    work = system.qubes["work"]
    work.set("netvm", netvm)
    work.set("memory", memory)
    for name, value in feature_values.items():
        work.features[name] = value
    for tag in tags:
        work.add_tag(tag)
    work.put_assignment(Assignment(Device("block", "sys-net", "sda", "0951:1666::b******"), "ask-to-attach", options))
    work.put_assignment(Assignment(Device("usb", "*", "*"), "auto-attach"))
    work.put_assignment(Assignment(Device("pci", "dom0", "00_1f.2"), "required"))
    for name, volume in work.volumes.items():
        if name == "private":
            system.journal.put("volumes", work.qid, work.volumes, name,
                               type(volume)(**{**volume.__dict__, "revisions_to_keep": revisions, "ephemeral": False}))
    again, remarks = loaded(qubesxml_export.export(system))
    assert remarks == []
    assert facts(again) == facts(system)
    assert qubesxml_export.export(again) == qubesxml_export.export(system)


def test_what_xml_cannot_hold_becomes_a_space_and_what_goes_is_left_out() -> None:
    system = furnished()
    system.qubes["work"].set_text("kernelopts", "a\x0bb\x0cc")
    system.qubes["alone"].set_state(REMOVING)
    again, _ = loaded(qubesxml_export.export(system))
    assert again.qubes["work"].get("kernelopts") == "a b c"
    assert "alone" not in again.qubes


# -- migrations, and what is mended --------------------------------------------------------------------------------------


def domain(number: int, klass: str, properties: str, rest: str = "") -> str:
    return (f'<domain id="domain-{number}" class="{klass}"><properties><property name="qid">{number}</property>'
            f'<property name="label">red</property>{properties}</properties>{rest}</domain>')


def prop(name: str, value: str = "") -> str:
    return f'<property name="{name}">{value}</property>'


TEMPLATE = domain(1, "TemplateVM", prop("name", "tpl"))


def document(*domains: str, properties: str = "", labels: str = '<label id="label-1" color="0xcc0000">red</label>') -> str:
    pools = '<pool name="p" driver="lvm_thin" volume_group="dom0"/><pool name="linux-kernel" driver="linux-kernel"/>'
    return (f"<qubes><labels>{labels}</labels><pools>{pools}</pools><properties>{properties}</properties>"
            f"<domains>{''.join(domains)}</domains></qubes>")


def test_grey_that_was_green() -> None:
    grey = '<label id="label-1" color="0xcc0000">red</label><label id="label-5" color="0x555753">gray</label>'
    assert loaded(document(labels=grey))[0].labels["gray"].colour == "0x555555"


@pytest.mark.parametrize(("old", "name", "value"), [
    (prop("hvm", "True"), "virt_mode", "hvm"),
    (prop("hvm", "False"), "virt_mode", "pv"),
    (prop("hvm", "True") + prop("virt_mode", "pvh"), "virt_mode", "pvh"),
    (prop("dispvm_allowed", "True"), "template_for_dispvms", True),
    (prop("memory", "700"), "memory", 700),
    (prop("stubdom_mem"), "stubdom_mem", None),
])
def test_properties_of_older_releases(old: str, name: str, value: object) -> None:
    system, remarks = loaded(document(TEMPLATE, domain(2, "AppVM", prop("name", "work") + prop("template", "tpl") + old)))
    assert system.qubes["work"].values[name] == value
    assert remarks == []


def test_a_label_by_reference_and_a_missing_uuid() -> None:
    text = document(domain(1, "TemplateVM", prop("name", "tpl"))).replace(
        '<property name="label">red</property>', '<property name="label" ref="label-1"/>')
    tpl = loaded(text)[0].qubes["tpl"]
    assert tpl.get("label") == "red" and tpl.uuid == "00000000-0000-4000-8000-000000000001"


@pytest.mark.parametrize(("value", "maxmem"), [("", 0), ("1", None)])
def test_the_memory_service_is_maxmem(value: str, maxmem: int | None) -> None:
    rest = f'<features><feature name="service.meminfo-writer">{value}</feature><feature name="os">Linux</feature></features>'
    tpl = loaded(document(domain(1, "TemplateVM", prop("name", "tpl"), rest)))[0].qubes["tpl"]
    assert tpl.values.get("maxmem") == maxmem and list(tpl.features) == ["os"]


def test_the_firewalls_netvm_is_kept_where_it_was_meant() -> None:
    net = domain(2, "AppVM", prop("name", "net") + prop("template", "tpl") + prop("provides_network", "True") + prop("netvm"))
    wall = domain(3, "AppVM", prop("name", "wall") + prop("template", "tpl") + prop("provides_network", "True"))
    work = domain(4, "AppVM", prop("name", "work") + prop("template", "tpl"))
    text = document(TEMPLATE, work, wall, net, properties=prop("default_netvm", "wall") + prop("default_fw_netvm", "net"))
    qubes = loaded(text)[0].qubes
    assert [qubes[name].get("netvm") for name in ("net", "wall", "work")] == [None, "net", "wall"]
    assert qubes["work"].is_default("netvm")
    system, _ = loaded(document(TEMPLATE, net, properties=prop("default_fw_netvm", "nowhere")))
    assert system.values == {}


def test_what_is_not_here_is_mended_and_told() -> None:
    properties = prop("default_kernel", "5.4") + prop("default_dispvm", "tpl") + prop("brand_new", "x")
    rest = ('<devices class="usb"><device backend-domain="gone" id="2-1"/><device backend-domain="dom0" id="2-2" mode="soon"/>'
            '<device backend-domain="dom0" id="2-3" required="no"><option name="identity">0951:1666::u080650</option></device>'
            '<device backend-domain="dom0" id="2-4"/></devices>')
    text = document(TEMPLATE, domain(2, "AppVM", prop("name", "w") + prop("template", "tpl") + prop("kernel", "5.4")
                                     + prop("management_dispvm", "tpl"), rest), properties=properties)
    system, remarks = loaded(text)
    assert len(remarks) == 7
    assert system.is_default("default_kernel") and system.values["default_dispvm"] is None
    w = system.qubes["w"]
    assert w.is_default("kernel") and w.values["management_dispvm"] is None
    assert [(each.device.port, each.device.identity, each.mode) for each in w.assignments.values()] == [
        ("2-3", "0951:1666::u080650", "auto-attach"), ("2-4", "*", "required")]


# -- hostile files -------------------------------------------------------------------------------------------------------

APP = prop("name", "w") + prop("template", "tpl")


def app(properties: str = "", rest: str = "") -> str:
    return document(TEMPLATE, domain(2, "AppVM", APP + properties, rest))


def volume(attributes: str) -> str:
    return app(rest=f"<volume-config><volume {attributes}/></volume-config>")


def device(attributes: str, inside: str = "", devclass: str = "usb") -> str:
    return app(rest=f'<devices class="{devclass}"><device {attributes}>{inside}</device></devices>')


LAUGHS = "<!DOCTYPE q [" + '<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {each} "{f"&{before};" * 10}">' for before, each in itertools.pairwise("abcdefgh")) + "]><qubes>&h;</qubes>"
HOSTILE: dict[str, str | bytes] = {
    "nothing": b"", "no xml": b"\0\1\2", "cut off": b"<qubes><labels>", "other root": b"<html/>",
    "two roots": b"<qubes/><qubes/>",
    "bad utf-8": b"<qubes>\xff</qubes>", "nul": b"<qubes>\0</qubes>",
    "laughs": LAUGHS, "external": '<!DOCTYPE q [<!ENTITY x SYSTEM "file:///etc/passwd">]><qubes>&x;</qubes>',
    "dtd": '<!DOCTYPE qubes SYSTEM "http://x/y.dtd"><qubes/>', "entity": "<qubes>&undeclared;</qubes>",
    "deep": "<qubes>" * 7 + "</qubes>" * 7, "very deep": "<q>" * 200_000,
    "attributes": "<qubes " + " ".join(f'a{number}="1"' for number in range(33)) + "/>",
    "same attribute": '<qubes a="1" a="2"/>',
    "label twice": document(labels='<label id="label-1" color="0xcc0000">red</label>' * 2),
    "label's colour": document(labels='<label id="label-1" color="red">red</label>'),
    "label's number": document(labels='<label id="label-x" color="0xcc0000">red</label>'),
    "label's name": document(labels='<label id="label-1" color="0xcc0000">a/b</label>'),
    "pool twice": "<qubes><pools>" + '<pool name="p" driver="d"/>' * 2 + "</pools></qubes>",
    "pool's name": '<qubes><pools><pool name="../p" driver="d"/></pools></qubes>',
    "pool's driver": '<qubes><pools><pool name="p"/></pools></qubes>',
    "class": document(domain(1, "HyperVM", prop("name", "x"))), "no class": "<qubes><domains><domain/></domains></qubes>",
    "name": document(domain(1, "TemplateVM", prop("name", "../x"))), "no name": document(domain(1, "TemplateVM", "")),
    "reserved name": document(domain(1, "TemplateVM", prop("name", "none"))),
    "dom0's name": document(domain(1, "TemplateVM", prop("name", "dom0"))),
    "name twice": document(TEMPLATE, TEMPLATE.replace(">1<", ">2<")),
    "qid twice": document(TEMPLATE, TEMPLATE.replace(">tpl<", ">x<")),
    "qid 0": document(domain(0, "TemplateVM", prop("name", "x"))),
    "qid max+1": document(domain(10000, "TemplateVM", prop("name", "x"))),
    "qid of digits": document(domain(1, "TemplateVM", prop("name", "x"))).replace(">1<", f">{'9' * 5000}<"),
    "dom0 twice": document('<domain id="domain-0" class="AdminVM"/>' * 2),
    "uuid": document(domain(1, "TemplateVM", prop("name", "x") + prop("uuid", "../../x"))),
    "uuid of dom0": document(domain(1, "TemplateVM", prop("name", "x") + prop("uuid", "00000000-0000-0000-0000-000000000000"))),
    "no label": document(TEMPLATE).replace('<property name="label">red</property>', ""),
    "unknown label": document(TEMPLATE).replace('"label">red', '"label">pink'),
    "no template": document(TEMPLATE, domain(2, "AppVM", prop("name", "w"))),
    "empty template": document(TEMPLATE, domain(2, "AppVM", prop("name", "w") + prop("template"))),
    "template of the wrong class": document(domain(2, "AppVM", prop("name", "w") + prop("template", "w"))),
    "a ring of templates": document(domain(2, "AppVM", prop("name", "a") + prop("template", "b")),
                                    domain(3, "AppVM", prop("name", "b") + prop("template", "a"))),
    "a ring of disposables": document(domain(2, "DispVM", prop("name", "a") + prop("template", "b") + prop("dispid", "1")),
                                      domain(3, "DispVM", prop("name", "b") + prop("template", "a") + prop("dispid", "2"))),
    "no dispid": document(TEMPLATE, domain(2, "AppVM", APP + prop("template_for_dispvms", "True")),
                          domain(3, "DispVM", prop("name", "d") + prop("template", "w"))),
    "dispid": document(TEMPLATE, domain(2, "AppVM", APP + prop("template_for_dispvms", "True")),
                       domain(3, "DispVM", prop("name", "d") + prop("template", "w") + prop("dispid", "10000"))),
    "dangling netvm": app(prop("netvm", "gone")), "netvm without network": app(prop("netvm", "tpl")),
    "own netvm": app(prop("netvm", "w")),
    "a ring of netvms": document(
        TEMPLATE, *(domain(number, "AppVM", prop("name", name) + prop("template", "tpl") + prop("provides_network", "1")
                           + prop("netvm", netvm)) for number, name, netvm in ((2, "a", "b"), (3, "b", "c"), (4, "c", "a")))),
    "default netvm in a ring": document(TEMPLATE, domain(2, "AppVM", APP + prop("provides_network", "1")),
                                        properties=prop("default_netvm", "w")),
    "boolean": app(prop("debug", "maybe")), "number": app(prop("vcpus", "many")), "negative": app(prop("vcpus", "-1")),
    "empty number": app(prop("vcpus")), "huge number": app(prop("memory", "9" * 30)), "digits": app(prop("memory", "9" * 5000)),
    "twice": app(prop("vcpus", "1") * 2), "nameless": app("<property>1</property>"), "not ASCII": app(prop("kernelopts", "é")),
    "address": app(prop("ip", "10.0.0.256")), "mac": app(prop("mac", "x")), "hvm": app(prop("hvm", "perhaps")),
    "feature's name": app(rest='<features><feature name="a b">1</feature></features>'),
    "feature's value": app(rest='<features><feature name="a">\n</feature></features>'),
    "feature twice": app(rest='<features><feature name="a"/><feature name="a"/></features>'),
    "tag": app(rest='<tags><tag name="a b"/></tags>'), "nameless tag": app(rest="<tags><tag/></tags>"),
    "volume's name": volume('name="../root" pool="p"'), "volume's pool": volume('name="root" pool="gone"'),
    "volume without pool": volume('name="root"'), "vid climbs": volume('name="root" pool="p" vid="appvms/../../etc/passwd"'),
    "vid": volume('name="root" pool="p" vid="a b"'), "source": volume('name="root" pool="p" source="../x"'),
    "size": volume('name="root" pool="p" size="-1"'), "size max+1": volume(f'name="root" pool="p" size="{(1 << 60) + 1}"'),
    "size word": volume('name="root" pool="p" size="1k"'), "revisions": volume('name="root" pool="p" revisions_to_keep="-2"'),
    "rw": volume('name="root" pool="p" rw="perhaps"'),
    "volume twice": app(rest="<volume-config>" + '<volume name="root" pool="p"/>' * 2 + "</volume-config>"),
    "no backend": device('id="2-1"'), "port": device('backend-domain="dom0" id="a b"'),
    "port of 256": device(f'backend-domain="dom0" id="{"a" * 256}"'),
    "identity": device('backend-domain="dom0" id="a" identity="&#10;"'),
    "identity of 1025": device(f'backend-domain="dom0" id="a" identity="{"a" * 1025}"'),
    "option": device('backend-domain="dom0" id="a"', '<option name="a">é</option>'),
    "option's name": device('backend-domain="dom0" id="a"', '<option name="a b"/>'),
    "options": device('backend-domain="dom0" id="a"', "".join(f'<option name="o{number}"/>' for number in range(40))),
    "class of devices": device('backend-domain="dom0" id="a"', devclass="../usb"),
    "required": device('backend-domain="dom0" required="so"'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_sentence_and_changes_nothing(name: str) -> None:
    text = HOSTILE[name]
    system = furnished_without_qubes()
    before = repr(facts(system))
    with pytest.raises(BadQubesXml) as caught:
        qubesxml.load(system, text.encode() if isinstance(text, str) else text)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    system.journal.undo()
    assert repr(facts(system)) == before


def furnished_without_qubes() -> System:
    system, _ = loaded(document())
    system.journal.clear()
    return system


def test_the_least_and_the_most_that_is_taken() -> None:
    system, remarks = loaded(b"<qubes/>")
    assert list(system.qubes) == ["dom0"] and remarks == []
    assert list(loaded(document(domain(9999, "TemplateVM", prop("name", "a" * 31))))[0].qubes) == ["dom0", "a" * 31]
    system, _ = loaded(volume(f'name="root" pool="p" size="{1 << 60}" vid="dom0/vm-w-root" revisions_to_keep="-1"'))
    root = system.qubes["w"].volumes["root"]
    assert (root.size, root.vid, root.revisions_to_keep, root.rw) == (1 << 60, "dom0/vm-w-root", -1, False)
    with pytest.raises(BadQubesXml, match="longer than"):
        loaded(b"<qubes/>" + b" " * qubesxml_elements.MAX_BYTES)
    qubes = [domain(number, "TemplateVM", prop("name", f"q{number}")) for number in range(1, qubesxml.MAX_QUBES + 2)]
    assert len(loaded(document(*qubes[:-1]))[0].qubes) == qubesxml.MAX_QUBES + 1
    with pytest.raises(BadQubesXml, match="more than"):
        loaded(document(*qubes))


@settings(max_examples=150)
@given(st.integers(0, 6000), st.binary(max_size=6), st.integers(0, 40))
def test_a_damaged_file_is_taken_or_refused(place: int, junk: bytes, gone: int) -> None:
    whole = GOLDEN.read_bytes()
    system = empty()
    try:
        qubesxml.load(system, whole[:place] + junk + whole[place + gone:])
    except BadQubesXml:
        system.journal.undo()
        assert list(system.qubes) == ["dom0"]
        return
    assert "dom0" in system.qubes


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_taken(untrusted: bytes) -> None:
    with pytest.raises(BadQubesXml):
        qubesxml.load(empty(), b"<x" + untrusted)


def test_what_was_loaded_is_stored_and_comes_back(tmp_path: Path) -> None:
    async def scenario() -> tuple[bytes, bytes]:
        app = await fake_app(str(tmp_path))
        with app.transaction():
            qubesxml.load(app.system, GOLDEN.read_bytes())
        app.choose_kernel()
        before = qubesxml_export.export(app.system)
        app.parts.store.close()
        app = await fake_app(str(tmp_path))
        after = qubesxml_export.export(app.system)
        app.parts.store.close()
        return before, after

    before, after = asyncio.run(scenario())
    assert before == after and b">vault<" in after


def test_a_refused_file_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = await fake_app(str(tmp_path))
        before = qubesxml_export.export(app.system)
        with pytest.raises(BadQubesXml), app.transaction():
            qubesxml.load(app.system, app_with_its_own_netvm().encode())
        assert qubesxml_export.export(app.system) == before
        app.parts.store.close()
        app = await fake_app(str(tmp_path))
        assert qubesxml_export.export(app.system) == before
        app.parts.store.close()

    asyncio.run(scenario())


def app_with_its_own_netvm() -> str:
    return app(prop("provides_network", "True") + prop("netvm", "w"))

"""The launch and the lines between qubesd and a warden."""
from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.errors import PeerError
from cloison.wire import warden
from cloison.wire.warden import DiskSource, Kernel, Launch, Layer, Lines

LAUNCH = Launch(
    name="work", uuid="11111111-2222-3333-4444-555555555555", xid=7, memory=400, vcpus=2,
    disks=(
        DiskSource("root", 10 << 30, (Layer("/pool/a.raw", "raw"), Layer("/pool/b.qcow2", "qcow2"))),
        DiskSource("private", 2 << 30, (Layer("/pool/c.raw", "raw"),), top=Layer("/pool/dirty.qcow2", "qcow2")),
        DiskSource("volatile", 1 << 30, ephemeral=True),
        DiskSource("modules", 1 << 20, (Layer("/k/modules.img", "raw"),), writable=False),
    ),
    kernel=Kernel("6.1.0", "/k/vmlinuz", "/k/initramfs", "/k/modules.img"),
    warm="/data/warm/abc", identity={"/name": "work", "/qubes-timezone": ""},
)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


def _through_json(launch: Launch) -> Any:
    return json.loads(warden.encode(warden.launch_to_json(launch)))


def _set(data: Any, path: tuple[str | int, ...], value: object) -> Any:
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return data


def test_launch_survives_the_wire() -> None:
    assert warden.launch_from_json(_through_json(LAUNCH)) == LAUNCH


@pytest.mark.parametrize(("path", "value"), [
    (("name",), 5), (("name",), None), (("name",), "a\0b"), (("uuid",), []), (("xid",), "7"), (("xid",), True), (("xid",), 0),
    (("xid",), 1 << 32), (("memory",), 0), (("memory",), 400.0), (("vcpus",), 0), (("vcpus",), 1025), (("debug",), 1),
    (("warm",), 3), (("accelerator",), "xen"), (("accelerator",), None), (("identity",), {"/name": 1}), (("identity",), []),
    (("identity",), {"/name": "a\0"}), (("start_timeout",), 0), (("start_timeout",), -1), (("kernel",), None),
    (("kernel",), {}), (("kernel", "version"), 6), (("kernel", "extra"), "x"), (("disks",), {}), (("disks",), "root"),
    (("disks",), [None]), (("disks", 0, "ephemeral"), 1),
    (("disks",), [{}] * 17), (("disks", 0, "role"), "boot"), (("disks", 0, "role"), []), (("disks", 0, "size"), 0),
    (("disks", 0, "size"), "1"), (("disks", 0, "extra"), 1), (("disks", 0, "writable"), None), (("disks", 0, "top"), {}),
    (("disks", 0, "top"), False), (("disks", 0, "layers"), None), (("disks", 0, "layers", 0, "format"), "vmdk"),
    (("disks", 0, "layers", 0, "path"), 1), (("disks", 0, "layers", 0, "extra"), 1), (("extra",), 1),
    (("programs",), -1), (("programs",), 257), (("programs_each",), 257), (("programs_each",), True), (("programs_each",), -1),
    (("disposables",), -1), (("disposables",), 257), (("disposables",), "1"),
])
def test_launch_with_one_thing_wrong_is_refused(path: tuple[str | int, ...], value: object) -> None:
    data = _set(_through_json(LAUNCH), path, value)
    with pytest.raises(PeerError):
        warden.launch_from_json(data)


@pytest.mark.parametrize("field", sorted(warden.launch_to_json(LAUNCH)))
def test_launch_without_a_field_is_refused(field: str) -> None:
    data = _through_json(LAUNCH)
    del data[field]
    with pytest.raises(PeerError):
        warden.launch_from_json(data)


@pytest.mark.parametrize(("count", "fine"), [(0, True), (1, True), (64, True), (65, False)])
def test_number_of_layers_is_bounded(count: int, fine: bool) -> None:
    data = _set(_through_json(LAUNCH), ("disks", 0, "layers"), [{"path": "/x", "format": "raw"}] * count)
    if fine:
        assert len(warden.launch_from_json(data).disks[0].layers) == count
    else:
        with pytest.raises(PeerError):
            warden.launch_from_json(data)


@given(JSON, st.sampled_from(sorted(warden.launch_to_json(LAUNCH))))
def test_any_json_in_a_field_is_a_launch_or_refused(value: Any, field: str) -> None:
    data = _through_json(LAUNCH)
    data[field] = value
    try:
        assert isinstance(warden.launch_from_json(data), Launch)
    except PeerError:
        pass
    with pytest.raises(PeerError):
        warden.launch_from_json(value)


@given(st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2), max_size=4), st.integers(0, 100))
def test_lines_survive_any_split(messages: list[dict[str, Any]], cut: int) -> None:
    data = b"".join(map(warden.encode, messages))
    lines = Lines()
    assert lines.feed(data[:cut]) + lines.feed(data[cut:]) == messages


@given(st.binary(max_size=60))
def test_garbage_lines_raise_nothing_but_peer_error(garbage: bytes) -> None:
    try:
        assert all(isinstance(each, dict) for each in Lines().feed(garbage + b"\n"))
    except PeerError:
        pass


@pytest.mark.parametrize("line", [b"[]", b"1", b"null", b'"x"', b"{", b"\xff", b"", b"[" * 100_000, b"9" * 5000])
def test_lines_that_are_no_objects_are_refused(line: bytes) -> None:
    with pytest.raises(PeerError):
        Lines().feed(line + b"\n")


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_line_length_limit(end: bytes) -> None:
    longest = b'{"x":"' + b"a" * (warden.MAX_LINE - 8) + b'"}'
    assert len(longest) == warden.MAX_LINE
    assert len(Lines().feed(longest + b"\n")) == 1
    lines = Lines()
    assert lines.feed(longest) == [] and len(lines.feed(b"\n" + longest + b"\n")) == 2
    with pytest.raises(PeerError):
        Lines().feed(longest.replace(b"}", b" }") + end)

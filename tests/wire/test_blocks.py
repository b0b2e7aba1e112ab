"""An attached device between qubesd and warden: there and back, and every refusal."""
from __future__ import annotations

import json

import pytest

from cloison.errors import PeerError
from cloison.wire import blocks
from cloison.wire.blocks import MAX_BLOCKS, Block

BLOCK = Block("xvdi", "00000000-0000-4000-8000-000000000001", "sda1", read_only=True)
GOOD = {"name": "xvdi", "backend": BLOCK.backend, "port": "sda1", "read_only": True, "disc": False}


def test_there_and_back() -> None:
    assert blocks.from_json(json.loads(json.dumps(blocks.to_json(BLOCK)))) == BLOCK
    assert blocks.list_from_json([GOOD, GOOD]) == (BLOCK, BLOCK)
    disc = BLOCK._replace(disc=True)
    assert blocks.from_json(blocks.to_json(disc)) == disc


def test_a_warden_that_knows_of_no_discs_has_none() -> None:
    assert blocks.from_json({key: value for key, value in GOOD.items() if key != "disc"}) == BLOCK


@pytest.mark.parametrize("bad", [
    None, [], {}, {**GOOD, "more": 1}, {key: GOOD[key] for key in ("name", "backend", "port")}, {**GOOD, "name": "vda"},
    {**GOOD, "name": "xvdabc"}, {**GOOD, "name": "xvdi\n"}, {**GOOD, "name": 1},
    {**GOOD, "backend": "../x"}, {**GOOD, "port": "a/b"},
    {**GOOD, "port": "x" * 13}, {**GOOD, "port": ""}, {**GOOD, "read_only": 1}, {**GOOD, "read_only": "yes"},
    {**GOOD, "disc": 1}, {**GOOD, "disc": None},
])
def test_anything_else_is_refused(bad: object) -> None:
    with pytest.raises(PeerError):
        blocks.from_json(bad)
    with pytest.raises(PeerError):
        blocks.list_from_json([bad])


@pytest.mark.parametrize("bad", [None, {}, "x", [GOOD] * (MAX_BLOCKS + 1)])
def test_a_list_has_its_bound(bad: object) -> None:
    assert blocks.list_from_json([GOOD] * MAX_BLOCKS) == (BLOCK,) * MAX_BLOCKS
    assert blocks.list_from_json([]) == ()
    with pytest.raises(PeerError):
        blocks.list_from_json(bad)


@pytest.mark.parametrize(("name", "good"), [
    ("xvda", True), ("xvdzz", True), ("sda", True), ("sdaa", False), ("xvd", False),
    ("xvdA", False), ("hda", False), ("xvdi ", False),
])
def test_names(name: str, good: bool) -> None:
    assert blocks.is_name(name) is good

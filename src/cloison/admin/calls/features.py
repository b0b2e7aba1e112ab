"""Features, tags and notes of a qube (reference/admin-api.md 5.6, 5.7)."""
from __future__ import annotations

from collections.abc import Callable

from cloison.admin.qubesd import Call
from cloison.errors import BadRequest, FeatureNotFound, NotPermitted, QubeError
from cloison.model import features
from cloison.model.domains import Qube
from cloison.wire import display
from cloison.wire.admin import MAX_NOTES


def listing(call: Call) -> str:
    return "".join(f"{name}\n" for name in call.dest.features)


def get(call: Call) -> str:
    return call.dest.feature(call.argument)


def check(*, template: bool = False, netvm: bool = False, adminvm: bool = False) -> Callable[[Call], str]:
    """A reader that also looks along chains."""

    def handler(call: Call) -> str:
        value = call.dest.feature_or_none(call.argument, template=template, netvm=netvm, adminvm=adminvm)
        if value is None:
            raise FeatureNotFound(f"{call.dest.name} has no feature {call.argument[:60]!r}, nor has what it inherits from")
        return value

    return handler


def set_(call: Call) -> None:
    name = features.check_name(call.argument)
    value = features.check_value(call.payload)
    features.check_permitted(name)
    with call.qubesd.transaction():
        call.dest.set_feature(name, value)
        _check_quota(call)


def _check_quota(call: Call) -> None:
    """For whoever is not dom0. Raises NotPermitted."""
    if call.source is not call.system.dom0:
        features.check_quota(call.dest.features, call.dest.tags)


def remove(call: Call) -> None:
    features.check_permitted(call.argument)
    with call.qubesd.transaction():
        call.dest.remove_feature(call.argument)


# -- tags ------------------------------------------------------------------------------------------------------------------


def tag_list(call: Call) -> str:
    return "".join(f"{tag}\n" for tag in sorted(call.dest.tags))


def tag_get(call: Call) -> str:
    return "1" if features.check_tag(call.argument) in call.dest.tags else "0"


def _check_tag_permitted(call: Call) -> str:
    tag = features.check_tag(call.argument)
    if tag.startswith("created-by-") and call.source is not call.system.dom0:
        raise NotPermitted("only dom0 may change who created a qube")
    return tag


def tag_set(call: Call) -> None:
    tag = _check_tag_permitted(call)
    with call.qubesd.transaction():
        call.dest.add_tag(tag)
        _check_quota(call)


def tag_remove(call: Call) -> None:
    tag = _check_tag_permitted(call)
    with call.qubesd.transaction():
        call.dest.remove_tag(tag)


# -- notes -----------------------------------------------------------------------------------------------------------------


def _check_has_notes(qube: Qube) -> None:
    """Raises QubeError."""
    if not qube.kind.machine:
        raise QubeError(f"{qube.name} is of class {qube.klass}: it has no notes here")


def notes_get(call: Call) -> str:
    _check_has_notes(call.dest)
    return call.dest.texts.get("notes", "")


def notes_set(call: Call) -> None:
    """An empty payload clears the notes."""
    text = checked_notes(call.payload)
    _check_has_notes(call.dest)
    with call.qubesd.transaction():
        call.dest.put_text("notes", text)


def checked_notes(untrusted: bytes) -> str:
    """What a person may not be shown as it is becomes `_`. Raises BadRequest."""
    if len(untrusted) > MAX_NOTES:
        raise BadRequest(f"notes have at most {MAX_NOTES} bytes, not {len(untrusted)}")
    try:
        text = untrusted.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("notes are UTF-8 text") from None
    return display.safe(text, also="\t\n")

"""Labels of the system (reference/admin-api.md 5.3)."""
from __future__ import annotations

from cloison.admin.qubesd import Call
from cloison.errors import BadLabelValue, BadRequest, LabelInUse, LabelNotFound
from cloison.model import labels


def listing(call: Call) -> str:
    ordered = sorted(call.system.labels.values(), key=lambda label: label.index)
    return "".join(f"{label.name}\n" for label in ordered)


def _label(call: Call) -> labels.Label:
    name = labels.check_name(call.argument, new=False)
    label = labels.find(call.system.labels, name)
    if label is None:
        raise LabelNotFound(f"no label {call.argument[:60]!r}")
    return label


def get(call: Call) -> str:
    return _label(call).colour


def index(call: Call) -> str:
    return str(_label(call).index)


def create(call: Call) -> None:
    name = labels.check_name(call.argument, new=True)
    try:
        colour = labels.check_colour(call.payload.decode("ascii"))
    except UnicodeDecodeError:
        raise BadLabelValue("a colour is ASCII text") from None
    if name in call.system.labels:
        raise LabelInUse(f"there is a label {name} already")
    with call.qubesd.transaction():
        call.system.add_label(name, colour)


def remove(call: Call) -> None:
    label = _label(call)
    if label.index <= labels.BUILT_IN:
        raise BadRequest(f"label {label.name} is built in")
    for qube in call.system.qubes.values():
        if qube.get_or_none("label") == label.name:
            raise LabelInUse(f"label {label.name} is the label of {qube.name}")
    with call.qubesd.transaction():
        call.system.drop_label(label.name)

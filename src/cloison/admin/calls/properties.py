"""`admin.vm.property.*` of any qube, and `admin.property.*` of the system (reference/admin-api.md 5.2)."""
from __future__ import annotations

from collections.abc import Callable

from cloison.admin.qubesd import Call
from cloison.errors import BadValue
from cloison.model.properties import Holder, Unset, to_text


def _qube(call: Call) -> Holder:
    return call.dest


def _system(call: Call) -> Holder:
    return call.system


def _described(holder: Holder, name: str) -> str:
    """`default=… type=… value`, the value empty where it can't be computed."""
    kind = holder.properties[name].type
    try:
        return f"default={holder.is_default(name)} type={kind} {to_text(holder.get(name))}"
    except Unset:
        return f"default=True type={kind} "


def _is_copied(call: Call) -> bool:
    """Whether a disposable is told the number of another one, as a tool does that copies all settings: each keeps its own."""
    others = [qube for qube in call.system.qubes.values() if qube is not call.dest and qube.dispid is not None]
    return call.dest.dispid is not None and call.payload in [str(qube.dispid).encode() for qube in others]


class Family:
    """The seven calls on one holder."""

    def __init__(self, holder: Callable[[Call], Holder]) -> None:
        self._holder = holder

    def list(self, call: Call) -> str:
        return "".join(f"{name}\n" for name in self._holder(call).properties)

    def get(self, call: Call) -> str:
        holder = self._holder(call)
        return _described(holder, holder.property(call.argument).name)

    def get_all(self, call: Call) -> str:
        holder = self._holder(call)
        lines = []
        for name in holder.properties:
            text = _described(holder, name)
            if "\\" in text or "\n" in text:
                text = text.replace("\\", "\\\\").replace("\n", "\\n")
            lines.append(f"{name} {text}\n")
        return "".join(lines)

    def get_default(self, call: Call) -> str:
        holder = self._holder(call)
        prop = holder.property(call.argument)
        try:
            return f"type={prop.type} {to_text(holder.default(prop.name))}"
        except Unset:
            return ""

    def help(self, call: Call) -> str:
        return self._holder(call).property(call.argument).doc

    def set(self, call: Call) -> None:
        holder = self._holder(call)
        holder.property(call.argument)
        if call.argument == "dispid" and _is_copied(call):
            return
        try:
            text = call.payload.decode("ascii")
        except UnicodeDecodeError:
            raise BadValue(f"property {call.argument} takes ASCII text only") from None
        with call.qubesd.transaction():
            holder.set_text(call.argument, text)

    def reset(self, call: Call) -> None:
        with call.qubesd.transaction():
            self._holder(call).reset(call.argument)


of_qube = Family(_qube)
of_system = Family(_system)

"""Cloison's own calls on the whole model: a qubes.xml taken over, and one written. On the internal socket."""
from __future__ import annotations

from cloison.admin.calls.internal import host_path
from cloison.admin.qubesd import Call
from cloison.model import qubesxml_export


async def import_qubes_xml(call: Call) -> str:
    """The payload names the file. The reply is what was left out or mended, a line each."""
    return "".join(f"{remark}\n" for remark in await call.qubesd.import_qubes_xml(host_path(call.payload)))


def export_qubes_xml(call: Call) -> str:
    return qubesxml_export.export(call.system).decode()

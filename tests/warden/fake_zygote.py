"""`python -m tests.warden.fake_zygote FD`: the real zygote, wardens and makers over machines without QEMU.

A launch's `kernelopts` say what its guest is: `silent` never answers, `broken` ends at once, any other is the real agent.
"""
from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.warden.guests import Guest

from cloison.hypervisor.base import MachineSpec
from cloison.hypervisor.fake import Boot, FakeMachine, silent
from cloison.warden import zygote


def machine(spec: MachineSpec) -> FakeMachine:
    folder = Path(tempfile.mkdtemp(dir=os.environ["CLOISON_ROOT"], prefix="guest-"))
    boots: dict[str, Boot] = {"silent": silent, "broken": lambda each, _port: each.end(1, "no such machine")}
    return FakeMachine(spec, boots.get(spec.kernelopts, Guest(folder).boot))


if __name__ == "__main__":
    zygote.main(machine)

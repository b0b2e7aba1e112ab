"""`python -m tests.warden.fake_zygote FD`: the real zygote, wardens and makers over machines without QEMU.

A launch's `kernelopts` say what its guest is: `silent` never answers, `broken` ends at once, `logs` is one of whom a
library's log tells, any other is the real agent.
"""
from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from tests.warden.guests import Guest

from cloison.hypervisor.base import MachineSpec
from cloison.hypervisor.fake import Boot, FakeMachine, silent
from cloison.warden import zygote


def machine(spec: MachineSpec) -> FakeMachine:
    folder = Path(tempfile.mkdtemp(dir=os.environ["CLOISON_ROOT"], prefix="guest-"))
    if spec.kernelopts == "logs":
        logging.getLogger("library").warning("of a guest: \x1b[31m")
    boots: dict[str, Boot] = {"silent": silent, "broken": lambda each, _port: each.end(1, "no such machine")}
    return FakeMachine(spec, boots.get(spec.kernelopts, Guest(folder).boot))


if __name__ == "__main__":
    zygote.main(machine)

"""qvm-pci: qvm-device for devices of class pci."""
from __future__ import annotations

from collections.abc import Sequence

from cloison.cli import qvm_device, tool

PROG = "qvm-pci"


def parser() -> tool.Parser:
    return qvm_device.parser(PROG)


def main(argv: Sequence[str] | None = None) -> int:
    return qvm_device.main(argv, PROG)

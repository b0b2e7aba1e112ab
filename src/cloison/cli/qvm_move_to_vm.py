"""qvm-move-to-vm: as qvm-copy-to-vm, and the originals go when all of them are there."""
from __future__ import annotations

from cloison.cli import tool
from cloison.cli.qvm_copy_to_vm import MOVE
from cloison.cli.qvm_copy_to_vm import main_move as main
from cloison.cli.qvm_copy_to_vm import parser as common_parser

__all__ = ["main", "parser"]


def parser() -> tool.Parser:
    return common_parser(MOVE)

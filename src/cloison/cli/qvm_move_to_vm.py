"""qvm-move-to-vm: as qvm-copy-to-vm, and the originals go when all of them are there."""
from __future__ import annotations

from cloison.cli.qvm_copy_to_vm import main_move as main

__all__ = ["main"]

"""The agent runs where its port's interrupts arrive, on the first processor; what it starts runs anywhere.

The kernel's driver of the port holds one lock both for a read and for an interrupt. On two processors they spin for it, and
without KVM a spinning processor holds up all of QEMU: a stream then takes up to twice the time (docs/decisions/0035).
"""
from __future__ import annotations

import contextlib
import os

PROCESSOR = 0


def share_processor_with(port: str) -> None:
    """The interrupts of the device file's device come to this process's processor. Where that can't be, all stays as it is."""
    name = os.path.basename(os.path.realpath(port))
    device = os.path.dirname(os.path.realpath(f"/sys/class/virtio-ports/{name}/device"))
    with contextlib.suppress(OSError):
        for number in os.listdir(os.path.join(device, "msi_irqs")):
            with open(f"/proc/irq/{number}/smp_affinity_list", "w", encoding="ascii") as file:
                file.write(str(PROCESSOR))
        os.sched_setaffinity(0, {PROCESSOR})

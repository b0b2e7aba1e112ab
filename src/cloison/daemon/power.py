"""The state of a qube's machine in the model, and the events that tell of it."""
from __future__ import annotations

from cloison.admin.qubesd import Qubesd
from cloison.model.domains import Qube
from cloison.values import PowerState

COMPUTED = ("xid", "stubdom_xid", "start_time")


def set_halted(qube: Qube) -> None:
    """Nothing of it runs."""
    qube.xid, qube.start_time, qube.power = -1, None, PowerState.HALTED
    qube.problem = qube.note = ""


class Power:
    def __init__(self, qubesd: Qubesd) -> None:
        self._qubesd = qubesd

    def emit(self, qube: Qube, *names: str, **pairs: object) -> None:
        with self._qubesd.transaction():
            for name in names:
                qube.journal.emit(qube.name, name, **pairs)

    def set(self, qube: Qube, power: PowerState, *names: str, problem: str | None = None, **pairs: object) -> None:
        """A change of state and the events that tell it. `problem`: what is wrong with its machine; None: as before."""
        self._qubesd.cache.clear()
        with self._qubesd.transaction():
            qube.power = power
            if problem is not None:
                qube.problem = problem
            for name in names:
                qube.journal.emit(qube.name, name, **pairs)

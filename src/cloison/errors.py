"""Every failure a caller may handle. One root; fields, not prose; words are made in `__str__`, advice in `hint`.

`wire` is the exception class name the Admin API sends for it (reference/admin-api.md 3). A class exists where a caller
would tell it apart, no more.
"""
from __future__ import annotations


class CloisonError(Exception):
    """Root. `hint` is what the person can do about it; `exit_status` is what a tool ends with."""

    wire = "QubesException"
    hint = ""
    exit_status = 1


def advice(error: BaseException) -> str:
    """What the person can do about a failure: its own hint, else that of the failure that it tells of (its `__cause__`)."""
    told: BaseException | None = error
    while told is not None:
        if hint := getattr(told, "hint", ""):
            return str(hint)
        told = told.__cause__
    return ""


class PeerError(CloisonError):
    """The other side left the protocol: its connection is dropped. Never shown to a guest.

    Arguments: what is wrong, then the values that show it.
    """

    wire = "ProtocolError"

    def __str__(self) -> str:
        what, *values = self.args or ("the protocol was left",)
        return f"{what}: {', '.join(map(repr, values))}" if values else str(what)


class StorageError(CloisonError):
    """A volume or its pool can't do what was asked; what was there is still there."""

    wire = "StoragePoolException"


class MachineError(CloisonError):
    """The virtual machine could not be started or driven."""


class HostError(CloisonError):
    """The host lacks something Cloison needs (a program, user namespaces, disk, memory)."""


class QubeNotFound(CloisonError):
    """No qube of that name or uuid."""

    wire = "QubesVMNotFoundError"
    hint = "qvm-ls lists the qubes."


class BadUuid(CloisonError):
    """A `uuid:` text that holds no uuid."""

    wire = "QubesVMInvalidUUIDError"


class QubeExists(CloisonError):
    """A qube of that name exists."""

    wire = "QubesVMAlreadyExistsError"


class QubeError(CloisonError):
    """One qube is in a state that forbids what was asked."""

    wire = "QubesVMError"


class QubeInUse(QubeError):
    """Something else needs the qube."""

    wire = "QubesVMInUseError"


class QubeNotStarted(QubeError):
    """The qube is halted and must not be."""

    wire = "QubesVMNotStartedError"
    hint = "Start it with qvm-start."


class QubeNotRunning(QubeNotStarted):
    """The qube does not run."""

    wire = "QubesVMNotRunningError"
    hint = "Start or unpause it first."


class QubeNotPaused(QubeNotRunning):
    """The qube is not paused."""

    wire = "QubesVMNotPausedError"


class QubeNotHalted(QubeError):
    """The qube must be halted for this."""

    wire = "QubesVMNotHaltedError"
    hint = "Shut it down with qvm-shutdown first."


class ShutdownTimeout(QubeError):
    """The qube did not power off in time."""

    wire = "QubesVMShutdownTimeoutError"
    hint = "qvm-kill ends it at once."


class NotEnoughMemory(QubeError):
    """The host has not enough free memory for the qube."""

    wire = "QubesMemoryError"


class PoolInUse(CloisonError):
    """The pool's name is taken, or the pool is needed."""

    wire = "QubesPoolInUseError"


class BadValue(CloisonError):
    """An invalid value."""

    wire = "QubesValueError"


class BadPropertyValue(BadValue):
    """An invalid value for a property, read-only ones included."""

    wire = "QubesPropertyValueError"


class NoSuchProperty(CloisonError):
    """No property of that name."""

    wire = "QubesNoSuchPropertyError"


class FeatureNotFound(CloisonError):
    """The feature is not set."""

    wire = "QubesFeatureNotFoundError"


class TagNotFound(CloisonError):
    """The qube has no such tag."""

    wire = "QubesTagNotFoundError"


class LabelNotFound(CloisonError):
    """No label of that name or number."""

    wire = "QubesLabelNotFoundError"


class LabelInUse(CloisonError):
    """The label exists already, or a qube has it."""

    wire = "QubesLabelInUseError"


class DeviceNotAssigned(CloisonError):
    """The device is not assigned or attached to this qube."""

    wire = "DeviceNotAssigned"


class DeviceNotFound(CloisonError):
    """Several devices are where one was asked for."""

    wire = "DeviceNotFound"


class DeviceAlreadyAttached(CloisonError):
    """The device is attached already."""

    wire = "DeviceAlreadyAttached"


class DeviceAlreadyAssigned(CloisonError):
    """The device is assigned to this qube already."""

    wire = "DeviceAlreadyAssigned"


class BadRequest(CloisonError):
    """A malformed call: unknown method, argument, payload or destination."""

    wire = "ProtocolError"


class TokenNotFound(BadRequest):
    """A clone token that is unknown or used up."""

    wire = "QubesVolumeCopyTokenNotFoundError"


class BadTag(BadRequest):
    """Not a tag."""

    wire = "QubesInvalidTagError"


class BadLabel(BadRequest):
    """Not a label's name."""

    wire = "QubesInvalidLabelError"


class BadLabelValue(BadRequest):
    """Not a label's colour."""

    wire = "QubesInvalidLabelValueError"


class BadAssignmentMode(BadRequest):
    """Not a mode of device assignment."""

    wire = "QubesUnrecognizedDeviceAssignmentMode"


class BackupProfileNotFound(CloisonError):
    """No backup profile of that name."""

    wire = "QubesBackupProfileNotFoundError"


class NotPermitted(CloisonError):
    """Refused; also said for names whose existence is nobody's business."""

    wire = "PermissionDenied"


class DiskFull(CloisonError):
    """A qube is not started: so little space is left that those that run need it. Arguments: qube, folder, bytes free there."""

    hint = "Free some space there: qvm-ls --disk shows what the qubes use, qvm-remove removes one."

    def __str__(self) -> str:
        name, folder, free = self.args
        return f"{name} is not started: only {free >> 20} MB are free in {folder}, and the qubes that run need them"


class StoreError(CloisonError):
    """The store of qubes is damaged, newer than this program, or can't be written. `and_so`: what that means for what was asked."""

    wire = "QubesException"
    and_so = ""
    hint = "It was left as it is. Restore store.sqlite from a backup; or begin anew: move the whole data folder away."

    def __str__(self) -> str:
        return super().__str__() + self.and_so

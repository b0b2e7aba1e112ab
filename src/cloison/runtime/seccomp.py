"""What a program in a box may not ask of the kernel: a filter that bubblewrap installs before the program's first instruction.

QEMU has a filter of its own, which it installs when it has started and which knows nothing of what its box relies on. This one
denies what a device model never needs and what would lead out of the box or reach another qube:

- pid 1 of the box has the same user id: nobody may trace it, read or write its memory or take its descriptors;
- a child of the box can't ask to outlive it, leave its process group or make namespaces;
- owner, mode, times and attributes of a file stay, and nobody takes a lease on it: the same file may be another qube's too;
- no descriptor is made with O_PATH: it would keep a file at hand without counting as open (holders.py);
- no memory that its process does not show: what is in no page table of its own (a memfd, System V's, what was mapped shared and is
  no more, pages and descriptors under way in pipes and sockets) is missing where its warden looks (warden/watch.py);
- no lock on a file: others may have it, and want one;
- no limit of its own is changed (hypervisor/qemu/limits.py), and no file has space but where its length is counted;
- no socket but those it was handed: an empty network namespace does not shut out AF_VSOCK, and each holds the kernel's memory;
- keys, io_uring, BPF, performance events, other processes' memory: doors into the kernel that a qube has no business at.

Classic BPF for x86-64, written out; any other architecture's system calls end the process.
"""
from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Sequence

_ARCH = 0xC000003E                  # AUDIT_ARCH_X86_64
_X32 = 0x40000000                   # system calls from there on are those of the x32 ABI
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

DENIED: dict[str, tuple[int, ...]] = {
    # ptrace, process_vm_readv, process_vm_writev, kcmp, pidfd_getfd, process_madvise, process_mrelease
    "other processes": (101, 310, 311, 312, 438, 440, 448),
    # setpgid, setsid
    "process groups": (109, 112),
    # add_key, request_key, keyctl
    "keys": (248, 249, 250),
    # pivot_root, chroot, mount, umount2, open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr, statmount,
    # listmount, open_tree_attr
    "mounts": (155, 161, 165, 166, 428, 429, 430, 431, 432, 433, 442, 457, 458, 467),
    # unshare, setns
    "namespaces": (272, 308),
    # chmod, fchmod, fchmodat, fchmodat2, chown, fchown, lchown, fchownat
    "owner and mode": (90, 91, 268, 452, 92, 93, 94, 260),
    # setxattr, lsetxattr, fsetxattr, removexattr, lremovexattr, fremovexattr, setxattrat, removexattrat,
    # file_setattr
    "attributes": (188, 189, 190, 197, 198, 199, 463, 466, 469),
    # utime, utimes, futimesat, utimensat
    "times of files": (132, 235, 261, 280),
    # mknod, mknodat, name_to_handle_at, open_by_handle_at
    "nodes and handles": (133, 259, 303, 304),
    # memfd_create, shmget, shmat, msgget, semget, mq_open, splice, tee, vmsplice, io_setup
    "memory that no process shows": (319, 29, 30, 68, 64, 240, 275, 276, 278, 206),
    # flock
    "locks": (73,),
    # fanotify_init, fanotify_mark, inotify_init, inotify_add_watch, inotify_init1
    "watching files": (300, 301, 253, 254, 294),
    # bpf, perf_event_open, userfaultfd, memfd_secret
    "doors into the kernel": (321, 298, 323, 447),
    # kexec_load, kexec_file_load, init_module, finit_module, delete_module, acct, swapon, swapoff, reboot, quotactl, quotactl_fd,
    # syslog
    "running the machine": (246, 320, 175, 313, 176, 163, 167, 168, 169, 179, 443, 103),
    # setrlimit
    "limits": (160,),
    # sethostname, setdomainname, settimeofday, clock_settime, adjtimex, clock_adjtime
    "names and clocks": (170, 171, 164, 227, 159, 305),
    # modify_ldt, iopl, ioperm, uselib, ustat, sysfs, personality, _sysctl, nfsservctl, lookup_dcookie, vhangup
    "what is old": (154, 172, 173, 134, 136, 139, 135, 156, 180, 212, 153),
}
# Whoever tries these has another way, and takes it when the kernel says that they don't exist: io_uring_setup, io_uring_enter,
# io_uring_register (would open and connect past this filter); clone3, openat2 (their flags are where no filter can look).
MISSING = (425, 426, 427, 435, 437)
SOCKETS = (41, 53)                              # socket, socketpair
_CLONE, _NEW_NAMESPACES = 56, 0x7E020080        # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
_OPEN, _OPENAT, _O_PATH = 2, 257, 0o10000000
# F_SETLEASE, F_NOTIFY: to have others wait for a file, to hear of their doings; F_SETPIPE_SZ; F_SETLK, F_SETLKW, F_OFD_SETLK(W)
_FCNTL, _FCNTL_DENIED = 72, (1024, 1026, 1031, 6, 7, 37, 38)
# Memory that is shared and no file's: it stays whole while one page of it is mapped.
_MMAP, _MAP_KIND, _MAP_SHARED_ANONYMOUS = 9, 0x2F, 0x21
# Modes of fallocate that a disk needs: space within the file, no space in a part of it, zeros. Others have space beyond its end.
_FALLOCATE, _FALLOCATE_MODES = 285, (0, 0x3, 0x10)
_PRLIMIT, _NEW_LIMIT = 302, 2
_PRCTL = 157
# PR_SET_PDEATHSIG, PR_SET_MM, PR_SET_CHILD_SUBREAPER, PR_SET_PTRACER: to outlive its parent, to look like another, to be traced
_PRCTL_DENIED = (1, 35, 36, 0x59616D61)


def program() -> bytes:
    """The filter as bubblewrap reads it from a descriptor."""
    return b"".join((
        _instruction(_LOAD, _ARCHITECTURE), _instruction(_EQUAL, _ARCH, 1, 0), _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER), _instruction(_AT_LEAST, _X32, 0, 1), _instruction(_RETURN, _KILL),
        *(_refuse(number, errno.EPERM) for numbers in DENIED.values() for number in numbers),
        *(_refuse(number, errno.ENOSYS) for number in MISSING),
        *(_refuse(number, errno.EAFNOSUPPORT) for number in SOCKETS),
        _if_bits(_CLONE, 0, _NEW_NAMESPACES), _if_bits(_OPEN, 1, _O_PATH), _if_bits(_OPENAT, 2, _O_PATH),
        _for(_MMAP, 3, [_instruction(_AND, _MAP_KIND), *_equal(_MAP_SHARED_ANONYMOUS)]),
        _for(_FALLOCATE, 1, _only(_FALLOCATE_MODES, errno.EOPNOTSUPP)), _if_pointer(_PRLIMIT, _NEW_LIMIT),
        _if_argument(_FCNTL, 1, _FCNTL_DENIED), _if_argument(_PRCTL, 0, _PRCTL_DENIED), _instruction(_RETURN, _ALLOW),
    ))


def pipe() -> int:
    """A descriptor that gives the filter once."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(writing, "wb") as file:
        file.write(program())           # it fits: nobody has to read meanwhile
    return reading


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refuse(number: int, error: int) -> bytes:
    return _instruction(_EQUAL, number, 0, 1) + _instruction(_RETURN, _ERRNO | error)


def _for(number: int, argument: int, body: Iterable[bytes]) -> bytes:
    """Run `body`, with the argument loaded, for that system call; afterwards the number is loaded again."""
    body = list(body)
    steps = [_instruction(_LOAD, _ARGUMENTS + 8 * argument), *body, _instruction(_LOAD, _NUMBER)]
    return _instruction(_EQUAL, number, 0, len(steps)) + b"".join(steps)


def _equal(value: int) -> list[bytes]:
    """Refuse it when what is loaded is that."""
    return [_instruction(_EQUAL, value, 0, 1), _instruction(_RETURN, _ERRNO | errno.EPERM)]


def _only(values: Sequence[int], error: int) -> list[bytes]:
    """Refuse it when what is loaded is none of those."""
    return [*(_instruction(_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)),
            _instruction(_RETURN, _ERRNO | error)]


def _if_pointer(number: int, argument: int) -> bytes:
    """Refuse it when the argument is not null, in either half."""
    body = [*_only((0,), errno.EPERM), _instruction(_LOAD, _ARGUMENTS + 8 * argument + 4), *_only((0,), errno.EPERM)]
    return _for(number, argument, body)


def _if_argument(number: int, argument: int, values: Iterable[int]) -> bytes:
    return _for(number, argument, [step for value in values for step in _equal(value)])


def _if_bits(number: int, argument: int, bits: int) -> bytes:
    return _for(number, argument, [_instruction(_ANY_BIT, bits, 0, 1), _instruction(_RETURN, _ERRNO | errno.EPERM)])

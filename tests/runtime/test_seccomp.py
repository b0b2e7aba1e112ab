"""The filter around QEMU, installed in a child: what it denies is denied, what a device model needs is not."""
from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import struct
import subprocess
import sys

import pytest

from cloison.runtime import seccomp

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter is for x86-64")
CHILD = """
import ctypes, errno, json, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
program = bytes.fromhex(sys.argv[1])
buffer = ctypes.create_string_buffer(program, len(program))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)), 0, 0) == 0
found = []
for number, *arguments in json.loads(sys.argv[2]):
    result = libc.syscall(number, *(a.encode() if isinstance(a, str) else ctypes.c_ulong(a) for a in arguments))
    found.append(0 if result >= 0 else ctypes.get_errno())
print(json.dumps(found))
"""


# By name, as the kernel's table for x86-64 numbers them; not taken from the filter, so that none goes missing there unnoticed.
NEVER = {
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_getfd": 438, "process_madvise": 440,
    "process_mrelease": 448, "setpgid": 109, "setsid": 112, "add_key": 248, "request_key": 249, "keyctl": 250, "pivot_root": 155,
    "chroot": 161, "mount": 165, "umount2": 166, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431,
    "fsmount": 432, "fspick": 433, "mount_setattr": 442, "statmount": 457, "listmount": 458, "open_tree_attr": 467, "unshare": 272,
    "setns": 308, "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94,
    "fchownat": 260, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198,
    "fremovexattr": 199, "setxattrat": 463, "removexattrat": 466, "file_setattr": 469, "utime": 132, "utimes": 235,
    "futimesat": 261, "utimensat": 280, "mknod": 133, "mknodat": 259, "name_to_handle_at": 303, "open_by_handle_at": 304,
    "fanotify_init": 300, "fanotify_mark": 301, "inotify_init": 253, "inotify_add_watch": 254, "inotify_init1": 294, "bpf": 321,
    "perf_event_open": 298, "userfaultfd": 323, "memfd_secret": 447, "kexec_load": 246, "kexec_file_load": 320, "init_module": 175,
    "finit_module": 313, "delete_module": 176, "acct": 163, "swapon": 167, "swapoff": 168, "reboot": 169, "quotactl": 179,
    "quotactl_fd": 443, "syslog": 103, "sethostname": 170, "setdomainname": 171, "settimeofday": 164, "clock_settime": 227,
    "adjtimex": 159, "clock_adjtime": 305, "modify_ldt": 154, "iopl": 172, "ioperm": 173, "uselib": 134, "ustat": 136, "sysfs": 139,
    "personality": 135, "_sysctl": 156, "nfsservctl": 180, "lookup_dcookie": 212, "vhangup": 153,
    "memfd_create": 319, "shmget": 29, "shmat": 30, "msgget": 68, "semget": 64, "mq_open": 240, "splice": 275, "tee": 276,
    "vmsplice": 278, "io_setup": 206, "flock": 73, "setrlimit": 160,
}


def test_no_call_is_missing_or_another() -> None:
    assert sorted(NEVER.values()) == sorted(number for numbers in seccomp.DENIED.values() for number in numbers)
    assert seccomp.MISSING == (425, 426, 427, 435, 437), "io_uring_setup, _enter, _register; clone3; openat2"


def asked(*calls: list[object]) -> list[int]:
    """Error numbers of these system calls under the filter, each given as its number and arguments; 0 for success."""
    argv = [sys.executable, "-c", CHILD, seccomp.program().hex(), json.dumps(calls)]
    found: list[int] = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    return found


def test_all_that_is_denied_is_denied() -> None:
    """With arguments that the kernel refuses for other reasons, or that would do no harm."""
    numbers = [number for numbers in seccomp.DENIED.values() for number in numbers]
    assert len(numbers) == len(set(numbers))
    bad = (1 << 64) - 1
    found = dict(zip(numbers, asked(*([number, bad, bad, bad, bad, bad, bad] for number in numbers)), strict=True))
    assert found == dict.fromkeys(numbers, errno.EPERM)


def test_what_has_another_way_does_not_exist() -> None:
    assert asked(*([number, 0, 0, 0, 0] for number in seccomp.MISSING)) == [errno.ENOSYS] * len(seccomp.MISSING)


@pytest.mark.parametrize("number", [41, 53])
@pytest.mark.parametrize("family", [1, 2, 10, 16, 17, 38, 40])
def test_no_socket(number: int, family: int) -> None:
    """By socket and socketpair: Unix, IPv4, IPv6, netlink, packets, the kernel's ciphers, vsock."""
    assert asked([number, family, 1, 0, 0]) == [errno.EAFNOSUPPORT]


SHARED, PRIVATE, ANONYMOUS, NORESERVE = 1, 2, 0x20, 0x4000


def test_no_memory_that_is_shared_and_no_files() -> None:
    """It stays whole while one page of it is mapped, and no process shows it."""
    no_fd = (1 << 64) - 1
    found = asked(*([9, 0, 4096, 3, flags, no_fd, 0] for flags in (
        SHARED | ANONYMOUS, SHARED | ANONYMOUS | NORESERVE, SHARED | ANONYMOUS | 1 << 32, PRIVATE | ANONYMOUS,
        PRIVATE | ANONYMOUS | NORESERVE, SHARED)))
    assert found == [errno.EPERM] * 3 + [0, 0, errno.EBADF]


@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_no_new_namespace(flag: int) -> None:
    assert asked([56, flag, 0, 0, 0, 0]) == [errno.EPERM]


def test_threads_can_be_made() -> None:
    """In the way the C library takes when clone3 is not there."""
    script = CHILD + "import threading; thread = threading.Thread(target=print, args=['ran']); thread.start(); thread.join()"
    done = subprocess.run([sys.executable, "-c", script, seccomp.program().hex(), "[]"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "ran"


def test_a_file_is_opened_but_never_kept_at_hand() -> None:
    path = os.O_PATH
    found = asked([2, "/dev/null", os.O_RDWR], [257, 0, "/dev/null", os.O_RDONLY],
                  [2, "/dev/null", path], [257, 0, "/dev/null", path], [257, 0, "/dev/null", path | os.O_CLOEXEC])
    assert found == [0, 0, errno.EPERM, errno.EPERM, errno.EPERM]


def test_nobody_has_others_wait_for_a_file_of_his() -> None:
    """F_SETLEASE, F_NOTIFY; F_GETFD goes on. A lease on a template's layer would hold up every start of a sibling."""
    assert asked([72, 0, 1024, 0], [72, 0, 1026, 1], [72, 0, 1024 | 1 << 32, 0], [72, 0, 1, 0]) == [errno.EPERM] * 3 + [0]


@pytest.mark.parametrize("command", [6, 7, 37, 38, 1031])
def test_no_lock_on_a_part_of_a_file_and_no_large_pipe(command: int) -> None:
    """F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW; F_SETPIPE_SZ."""
    assert asked([72, 0, command, 0], [72, 0, 3, 0]) == [errno.EPERM, 0]


def test_a_limit_is_read_and_never_set() -> None:
    """prlimit64 with a new limit: 1 is no address, nor is one with zeros in its lower half."""
    found = asked([302, 0, 1, 0, 0], [302, 0, 1, 1, 0], [302, 0, 1, 1 << 32, 0], [302, 0, 1, 1 << 63, 0], [160, 1, 0])
    assert found == [0, errno.EPERM, errno.EPERM, errno.EPERM, errno.EPERM]


def test_a_file_has_space_within_its_length_and_no_other_way() -> None:
    """fallocate: its usual mode, a hole and zeros within a file go on, to fail for want of one; and not the kinds that have space
    beyond its end (FALLOC_FL_KEEP_SIZE, alone and with zeros), move its end (collapse, insert) or do anything new.
    """
    none = (1 << 64) - 1
    kinds = (0, 3, 0x10, 1, 2, 0x11, 8, 9, 0x20, 0x21, 0x40, 0x41, 0x80, 1 << 31)
    assert asked(*([285, none, kind, 0, 4096] for kind in kinds)) == [errno.EBADF] * 3 + [errno.EOPNOTSUPP] * 11


def test_nobody_outlives_its_parent() -> None:
    """PR_SET_PDEATHSIG, PR_SET_MM, PR_SET_CHILD_SUBREAPER, PR_SET_PTRACER; PR_GET_NAME's like go on."""
    found = asked([157, 1, 0, 0, 0, 0], [157, 35, 0, 0, 0, 0], [157, 36, 1, 0, 0, 0], [157, 0x59616D61, 0, 0, 0, 0],
                  [157, 1 | 1 << 32, 0, 0, 0, 0], [157, 15, "name", 0, 0, 0])
    assert found == [errno.EPERM] * 5 + [0]


@pytest.mark.parametrize("number", [39 | 0x40000000, 0x40000000 + 520])
def test_calls_of_another_abi_end_the_process(number: int) -> None:
    argv = [sys.executable, "-c", CHILD, seccomp.program().hex(), json.dumps([[number]])]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == -31


def decided(program: bytes, arch: int, number: int) -> int:
    """What the filter returns, worked out here: for an architecture that this test can't run on."""
    steps = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    data = struct.pack("=IIQ6Q", number, arch, 0, *[0] * 6)
    position = value = 0
    while True:
        code, if_true, if_false, operand = steps[position]
        position += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            value = struct.unpack_from("=I", data, operand)[0]
        elif code == 0x54:
            value &= operand
        else:
            yes = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            position += if_true if yes else if_false


def test_another_architecture_ends_the_process() -> None:
    program = seccomp.program()
    assert decided(program, 0x40000003, 1) == 0x80000000
    assert decided(program, 0xC000003E, 1) == 0x7FFF0000
    assert decided(program, 0xC000003E, 101) == 0x00050000 | errno.EPERM


def test_a_jump_never_leads_out_of_the_filter() -> None:
    program = seccomp.program()
    assert len(program) % 8 == 0 and len(program) // 8 < 4096
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    for number in range(512):
        assert decided(program, 0xC000003E, number) in (0x7FFF0000, *(0x00050000 | error for error in (1, 38, 95, 97)))

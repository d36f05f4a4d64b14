"""The sandbox of a decoder process: after it, hostile bytes that took over C code reach nothing.

In: a process that has loaded all that it will ever need. Out: the same process under a seccomp
filter of the kernel. Invariant: what the filter does not name fails with EPERM, it never kills: no
file is opened, no socket made, no program started, no other process touched.

seccomp alone, without Landlock: Landlock knows files and TCP, but no UDP and no Unix sockets, and
leaves fork, exec and ptrace alone. Numbers are from the kernel's tables (asm/unistd.h); the
instructions are classic BPF (linux/filter.h) on `struct seccomp_data` (linux/seccomp.h).
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_SET_MODE_FILTER: Final = 1
# All threads at once; and without the slow mode against Spectre that kernels before 5.16 add: it
# guards secrets of a process from itself, and there are none here.
_FLAGS: Final = 1 | 4
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_CLONE_THREAD: Final = 0x00010000

# BPF: load a word of seccomp_data, compare it, mask it, return.
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_INSTRUCTION: Final = struct.Struct("<HBBI")
_AT_NUMBER, _AT_ARCH, _AT_FIRST_ARG = 0, 4, 16


@dataclass(frozen=True)
class _Machine:
    """One architecture: how the kernel names it, and the calls that the filter looks into."""

    column: int
    """Its numbers in _ALLOWED."""
    arch: int
    seccomp: int
    clone: int
    clone3: int
    prlimit64: int
    tgkill: int


_MACHINES: Final = {
    "x86_64": _Machine(0, 0xC000003E, 317, clone=56, clone3=435, prlimit64=302, tgkill=234),
    "aarch64": _Machine(1, 0xC00000B7, 277, clone=220, clone3=435, prlimit64=261, tgkill=131),
}
# Number on x86_64 and on aarch64, the frequent ones first: what is open already, memory, threads,
# clocks, waiting, its own signals, the end.
_ALLOWED: Final[dict[str, tuple[int, int | None]]] = {
    "recvfrom": (45, 207), "sendto": (44, 206), "getrusage": (98, 165), "select": (23, None),
    "pselect6": (270, 72), "poll": (7, None), "ppoll": (271, 73), "read": (0, 63),
    "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "close": (3, 57), "lseek": (8, 62),
    "fstat": (5, 80), "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216),
    "mprotect": (10, 226), "madvise": (28, 233), "brk": (12, 214), "futex": (202, 98),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "set_tid_address": (218, 96),
    "set_robust_list": (273, 99), "rseq": (334, 293), "gettid": (186, 178), "getpid": (39, 172),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "restart_syscall": (219, 128),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "getrandom": (318, 278), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip


class _Program(ctypes.Structure):
    """`struct sock_fprog`: how many instructions, and where."""

    _fields_ = (("num_instructions", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def enter_sandbox() -> str:
    """Confine this process and all its threads for the rest of its life.

    Returns:
        "" where it is confined, else what is missing, for `imgcls doctor`.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        known = " and ".join(_MACHINES)
        return f"no filter for {platform.machine()}: only {known} have one"
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero):
        return f"the kernel refuses no_new_privs: {os.strerror(ctypes.get_errno())}"
    instructions = b"".join(_filter(machine, os.getpid()))
    program = _Program(len(instructions) // _INSTRUCTION.size, instructions)
    flags = ctypes.c_ulong(_FLAGS)
    number = ctypes.c_long(machine.seccomp)
    mode = ctypes.c_ulong(_SECCOMP_SET_MODE_FILTER)
    if failed := libc.syscall(number, mode, flags, ctypes.byref(program)):
        reason = os.strerror(ctypes.get_errno()) if failed < 0 else f"thread {failed} does not"
        return f"the kernel refuses a seccomp filter: {reason}"
    return ""


def _filter(machine: _Machine, pid: int) -> Iterator[bytes]:
    """Yield the instructions: each test either returns or falls through to the next one."""
    denied = _ERRNO | errno.EPERM
    yield _instruction(_LOAD, _AT_ARCH)
    yield _instruction(_EQUAL, machine.arch, if_true=1)
    yield _instruction(_RETURN, denied)  # the calls of another architecture have other numbers
    yield _instruction(_LOAD, _AT_NUMBER)
    for numbers in _ALLOWED.values():
        if (number := numbers[machine.column]) is not None:
            yield from _return_if(_EQUAL, number, _ALLOW)
    # Its flags lie in memory, where a filter cannot look; glibc takes clone where there is none.
    yield from _return_if(_EQUAL, machine.clone3, _ERRNO | errno.ENOSYS)
    # Threads, but no processes; limits and signals of its own.
    yield from _if_first_arg(machine.clone, _ANY_BIT, _CLONE_THREAD)
    yield from _if_first_arg(machine.prlimit64, _EQUAL, 0)
    yield from _if_first_arg(machine.tgkill, _EQUAL, pid)
    yield _instruction(_RETURN, denied)


def _instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, if_true, if_false, value)


def _return_if(test: int, value: int, result: int) -> Iterator[bytes]:
    yield _instruction(test, value, if_false=1)
    yield _instruction(_RETURN, result)


def _if_first_arg(number: int, test: int, value: int) -> Iterator[bytes]:
    """Allow a call by the low word of its first argument, else leave its number loaded."""
    yield _instruction(_EQUAL, number, if_false=4)
    yield _instruction(_LOAD, _AT_FIRST_ARG)
    yield from _return_if(test, value, _ALLOW)
    yield _instruction(_LOAD, _AT_NUMBER)

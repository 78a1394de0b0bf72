"""A filter of system calls (seccomp BPF): what no program under test needs, and what attacks on kernels begin with.

Refused calls fail with EPERM; `clone3` with ENOSYS, because a filter cannot see its flags and the C library then falls
back on `clone`, whose flags it can: new namespaces are refused. Another architecture's calls (i386, x32) end the
process.
"""

from __future__ import annotations

import errno
import os
import platform
import struct

# linux/bpf_common.h, linux/seccomp.h, linux/audit.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
# CLONE_NEW* of clone(2), but for CLONE_NEWTIME, whose bit clone(2) reads as a part of the exit signal.
_NEW_NAMESPACE = 0x7E020000
_X32 = 0x40000000
# Call: its number on x86-64 and on arm64 (asm/unistd_64.h, asm-generic/unistd.h).
_REFUSED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "init_module": (175, 105),
    "io_uring_setup": (425, 425),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
# What namespaces make harmless, and Landlock does not stop; None where arm64 has no such call. A program of the user's
# own uid could change the rights of the user's files, take part in the IPC of other processes and slow them down.
_REFUSED_WITHOUT_NAMESPACES = {
    "chmod": (90, None),
    "chown": (92, None),
    "fanotify_init": (300, 262),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchownat": (260, 54),
    "file_setattr": (469, 469),
    "futimesat": (261, None),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "ioprio_set": (251, 30),
    "lchown": (94, None),
    "lremovexattr": (198, 15),
    "lsetxattr": (189, 6),
    "mq_open": (240, 180),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "removexattr": (197, 14),
    "removexattrat": (466, 466),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "setpriority": (141, 140),
    "setxattr": (188, 5),
    "setxattrat": (463, 463),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmget": (29, 194),
    "socket": (41, 198),
    "truncate": (76, 45),
    "utime": (132, None),
    "utimensat": (280, 88),
    "utimes": (235, None),
}
# They seem to work and do nothing, so that nobody leaves the process group by which a run is killed.
_IDLE_WITHOUT_NAMESPACES = {"setpgid": (109, 154), "setsid": (112, 157)}
_PRLIMIT = (302, 261)
_CLONE, _CLONE3 = (56, 220), (435, 435)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def supported() -> bool:
    """Whether this machine's calls are known here."""
    return platform.machine() in _ARCHITECTURES


def program(*, namespaces: bool = True) -> bytes:
    """Returns the filter as `struct sock_filter[]`, as `bwrap --seccomp` reads it.

    Without namespaces around the program, it also stops what they would keep to themselves.
    """
    column, arch = _ARCHITECTURES[platform.machine()]
    refuse, missing = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    lines = [_line(_LOAD, _ARCH), _line(_EQUAL, arch, 1, 0), _line(_RETURN, _KILL), _line(_LOAD, _NUMBER)]
    if column == 0:
        lines += [_line(_AT_LEAST, _X32, 0, 1), _line(_RETURN, _KILL)]
    for numbers in _REFUSED.values():
        lines += [_line(_EQUAL, numbers[column], 0, 1), _line(_RETURN, refuse)]
    if not namespaces:
        lines += _without_namespaces(column)
    lines += [_line(_EQUAL, _CLONE3[column], 0, 1), _line(_RETURN, missing)]
    lines += [_line(_EQUAL, _CLONE[column], 0, 3), _line(_LOAD, _FIRST_ARGUMENT), _line(_ANY_BIT, _NEW_NAMESPACE, 0, 1)]
    lines += [_line(_RETURN, refuse), _line(_RETURN, _ALLOW)]
    return b"".join(lines)


def _without_namespaces(column: int) -> list[bytes]:
    refuse, idle, lines = _ERRNO | errno.EPERM, _ERRNO, []
    for table, answer in ((_REFUSED_WITHOUT_NAMESPACES, refuse), (_IDLE_WITHOUT_NAMESPACES, idle)):
        for numbers in table.values():
            if (number := numbers[column]) is not None:
                lines += [_line(_EQUAL, number, 0, 1), _line(_RETURN, answer)]
    # A process may limit itself, but not others of its user.
    lines += [_line(_EQUAL, _PRLIMIT[column], 0, 4), _line(_LOAD, _FIRST_ARGUMENT), _line(_EQUAL, 0, 1, 0)]
    return [*lines, _line(_RETURN, refuse), _line(_RETURN, _ALLOW)]


def open_program(*, namespaces: bool = True) -> int:
    """Returns a file descriptor from which the filter is read."""
    fd = os.memfd_create("seccomp")
    os.write(fd, program(namespaces=namespaces))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _line(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, k)

"""Limits of this machine and of this process that end or slow a long run."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

from iterpref_jax.doctor.finding import Finding, ok, warn

GIB = 2**30
# Shards, checkpoints' files, sockets of many hosts and a pipeline's workers.
LEAST_FILES = 4096
LEAST_SHARED_MEMORY = GIB
SHARED_MEMORY = "/dev/shm"
_CGROUP_MEMORY = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


def check_limits() -> list[Finding]:
    """Looks at open files, file sizes, locked and shared memory, and the machine's memory."""
    problems = [*_files(), *_file_sizes(), *_locked_memory(), *_shared_memory(), *_proxies()]
    text = f"{os.cpu_count()} CPU cores, {host_memory() / GIB:.1f} GiB of memory for this process"
    return [ok("machine", text), *problems]


def host_memory() -> int:
    """Returns the bytes that this process may use: the machine's, or its container's."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, _CGROUP_MEMORY):
        if path.exists() and (text := path.read_text().strip()).isdigit():
            found = min(found, int(text))
    return found


def _files() -> list[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= LEAST_FILES:
        return []
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(min(hard, 65536))
    text = f"only {soft} open files are allowed"
    return [warn("machine", text, f"ulimit -n {most} before the command (Docker: --ulimit nofile=65536)")]


def _file_sizes() -> list[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == resource.RLIM_INFINITY:
        return []
    return [warn("machine", f"a file may have {soft} bytes at most", "ulimit -f unlimited, or checkpoints may not fit")]


def _locked_memory() -> list[Finding]:
    """libtpu locks the memory that it exchanges with the chips."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if not _has_tpu() or soft == resource.RLIM_INFINITY or soft >= GIB:
        return []
    text = f"only {soft // 1024} KiB of memory may be locked, and libtpu locks what it exchanges with the chips"
    return [warn("machine", text, "ulimit -l unlimited (Docker: --ulimit memlock=-1, Kubernetes: privileged: true)")]


def _shared_memory() -> list[Finding]:
    """NCCL and a pipeline's worker processes exchange data there."""
    if not Path(SHARED_MEMORY).is_dir():
        return []
    size = shutil.disk_usage(SHARED_MEMORY).total
    if size >= LEAST_SHARED_MEMORY:
        return []
    text = f"{SHARED_MEMORY} has {size / 2**20:.0f} MiB, through which NCCL and data workers exchange data"
    return [
        warn("machine", text, "Docker: --shm-size=16g or --ipc=host; Kubernetes: an emptyDir of medium Memory there")
    ]


def _proxies() -> list[Finding]:
    found = [name for name in (*_PROXIES, *map(str.upper, _PROXIES)) if os.environ.get(name)]
    if not found:
        return []
    text = f"{', '.join(found)} is set: processes of one run would look for each other through it"
    return [warn("machine", text, "unset it for a run on several hosts, or name the hosts in no_proxy")]


def _has_tpu() -> bool:
    return Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()

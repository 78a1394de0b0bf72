"""Compiled programs are kept on disk, so that the same command starts faster the next time.

JAX's key holds the program, the versions, the flags and the device: of a CPU also its instruction sets, so that a
home folder on machines of several kinds is safe.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

from iterpref_jax.parallel import xla_flags
from iterpref_jax.progress import warn

ENVIRONMENT = "JAX_COMPILATION_CACHE_DIR"
# Reading an entry takes milliseconds: what compiles faster than this is not worth a file.
LEAST_S = 0.1
LARGEST_BYTES = 8 << 30
# Of several processes, which look for a file that was just written.
SEEN_WITHIN_S = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileSettings:
    """`cache`: the folder of compiled programs; "auto" is one of the user's, empty is none.

    The environment variable JAX_COMPILATION_CACHE_DIR wins. `xla_flags`: "auto" is the table of `parallel.xla_flags`.
    """

    cache: str
    xla_flags: str

    def __post_init__(self):
        xla_flags.check(self.xla_flags)


def enable(settings: CompileSettings) -> None:
    """Sets XLA's flags and turns the cache on, before devices are opened.

    A folder that cannot be used is announced.
    """
    xla_flags.apply(settings.xla_flags)
    # Here, because settings are also read by commands that start without JAX.
    import jax

    from iterpref_jax.parallel import distributed

    folder = "" if ENVIRONMENT in os.environ else settings.cache
    folder = _user_folder() if folder == "auto" else folder
    several = distributed.process_count() > 1
    why = _why_not_of_all(folder) if several else _why_not(folder)
    if why:
        warn(f"compiled programs are not kept: {folder} {why}; see compile.cache")
    if why or not folder:
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    if not several:
        # JAX keeps to it under a lock, for which it does not wait long: of many processes some would miss.
        jax.config.update("jax_compilation_cache_max_size", LARGEST_BYTES)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_S)


def _why_not(folder: str) -> str:
    """Returns why a folder cannot be used, which is made; "" if it can, or there is none."""
    if folder and "://" not in folder:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            return f"cannot be written ({error.strerror})"
    return ""


def _why_not_of_all(folder: str) -> str:
    """Returns why a folder cannot be used by several processes, "" as `_why_not`; all of them call this.

    On GPUs the processes that compile a program tune its kernels for each other, and would wait for one that found it
    compiled: what one finds all must find.
    """
    from etils import epath

    from iterpref_jax.parallel import distributed
    from iterpref_jax.train import alike

    if not all(distributed.gather("compile cache", bool(folder))):
        return "is not used by all processes" if folder else ""
    return "" if alike.is_shared(epath.Path(folder), SEEN_WITHIN_S) else "is not one folder for all hosts"


def _user_folder() -> str:
    above = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(above) / "iterpref" / "jax")

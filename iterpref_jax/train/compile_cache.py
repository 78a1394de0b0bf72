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

    A folder that cannot be written is announced.
    """
    xla_flags.apply(settings.xla_flags)
    if ENVIRONMENT in os.environ or not settings.cache:
        return
    folder = _user_folder() if settings.cache == "auto" else settings.cache
    if "://" not in folder:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            warn(f"compiled programs are not kept: {folder} cannot be written ({error.strerror}); see compile.cache")
            return
    # Here, because settings are also read by commands that start without JAX.
    import jax

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_max_size", LARGEST_BYTES)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_S)


def _user_folder() -> str:
    above = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(above) / "iterpref" / "jax")

"""Another interpreter than the one that runs the tests, where this machine has one."""

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iterpref_jax.codeflow.sandbox import interpreter

MINORS = range(10, 16)


def other() -> str:
    """The path of one of another version; skips the test where there is none."""
    return _others(is_old=False) or pytest.skip("this machine has no other version of Python")


def old() -> str:
    """The path of one that is too old; skips the test where there is none."""
    return _others(is_old=True) or pytest.skip("this machine has no version of Python that is too old")


def environment(folder: Path) -> Path:
    """A virtual environment of another version, without packages; its interpreter."""
    subprocess.run([other(), "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


@functools.cache
def _others(*, is_old: bool) -> str:
    minors = range(4, interpreter.OLDEST[1]) if is_old else MINORS
    names = [f"python3.{minor}" for minor in minors if minor != sys.version_info[1]]
    paths = [shutil.which(name) for name in names]
    for folder in Path.home().glob(".pyenv/versions/*/bin"):
        paths += [shutil.which(name, path=str(folder)) for name in names]
    return next((path for path in paths if path and _runs(path)), "")


def _runs(path: str) -> bool:
    """A shim of pyenv stands for versions that are not there."""
    try:
        ended = subprocess.run([path, "-c", "import ssl, ctypes"], capture_output=True, check=False)
    except OSError:
        return False
    return ended.returncode == 0

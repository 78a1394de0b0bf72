"""Versions: what is installed, what we ask for, and combinations that are known not to work."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from iterpref_jax.doctor.finding import Finding, fail, ok, warn
from iterpref_jax.parallel import xla_flags

PACKAGE = "iterpref_jax"
SHOWN = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
)
_TRY_S = 120

Versions = Mapping[str, str]


def versions() -> dict[str, str]:
    """Returns what is installed of `SHOWN`, and Python."""
    found = {"python": platform.python_version()}
    return found | {name: version for name in SHOWN if (version := _version(name)) is not None}


def check_versions(found: Versions) -> list[Finding]:
    """Compares what is installed with what we ask for and what JAX asks for."""
    problems = [finding for check in (_unmet, _jaxlib, _flax, _plugins, _libtpu) for finding in check(found)]
    return [ok("versions", ", ".join(f"{name} {version}" for name, version in found.items())), *problems]


def check_flags() -> list[Finding]:
    """Tries the flags in the environment, ours and the user's, in a process of its own: an unknown one ends it."""
    given = os.environ.get(xla_flags.XLA_FLAGS, "")
    set_here = [word for name in xla_flags.VARIABLES.values() for word in os.environ.get(name, "").split()]
    if given:
        # The CPU's XLA knows the flags of GPUs too. libtpu reads its own variable, when the check `step` compiles.
        ended = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=_TRY_S, check=False,
        )  # fmt: skip
        if ended.returncode:
            return [_refused(ended.stderr)]
    return [ok("flags", " ".join(set_here) or "none set")]


def _refused(errors: str) -> Finding:
    line = next((line for line in errors.splitlines() if "nknown flag" in line), errors.strip()[-200:])
    return fail(
        "flags",
        f"the installed XLA refuses its flags: {line.rpartition('] ')[2]}",
        f"take it out of {xla_flags.XLA_FLAGS}; if it is one of parallel/xla_flags.py, set compile.xla_flags to none "
        "and report it with the versions above",
    )


def _unmet(found: Versions) -> list[Finding]:
    """What setup.py asks for and is not there; extras are asked for by those who need them."""
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or []]
    except importlib.metadata.PackageNotFoundError:
        return [
            warn("versions", f"{PACKAGE} is run from its folder, not installed", "install it: pip install --editable .")
        ]
    unmet = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            unmet.append((requirement, version))
    return [
        fail("versions", f"{needed.name} is {version or 'missing'}", f"install it: pip install '{needed}'")
        for needed, version in unmet
    ]


def _jaxlib(found: Versions) -> list[Finding]:
    jax, jaxlib = found.get("jax"), found.get("jaxlib")
    if jax is None or jaxlib is None or _release(jax, 3) == _release(jaxlib, 3):
        return []
    return [
        fail("versions", f"jax {jax} with jaxlib {jaxlib}", f"they come together: pip install jax=={jax} jaxlib=={jax}")
    ]


def _flax(found: Versions) -> list[Finding]:
    if "flax" not in found or "jax" not in found:
        return []
    if Version(found["flax"]) > Version("0.12.8") or Version(found["jax"]) < Version("0.11.1"):
        return []
    text = f"flax {found['flax']} breaks with jax {found['jax']}"
    return [fail("versions", text, "pip install --upgrade flax, or pip install 'jax<0.11.1'")]


def _plugins(found: Versions) -> list[Finding]:
    plugins = {name: version for name, version in found.items() if name.endswith("-plugin")}
    problems = [
        fail(
            "versions",
            f"{name} {version} with jaxlib {found['jaxlib']}",
            f"the plugin must be of JAX's version, or JAX falls back to the CPU: pip install {name}=={found['jaxlib']}",
        )
        for name, version in plugins.items()
        if _release(version, 2) != _release(found["jaxlib"], 2)
    ]
    if len(plugins) > 1:
        names = " and ".join(plugins)
        problems.append(
            warn("versions", f"{names} are both installed", "uninstall the one whose CUDA is not the driver's")
        )
    return problems


def _libtpu(found: Versions) -> list[Finding]:
    """JAX names the libtpu that it was tested with in its extra `tpu`."""
    if "libtpu" not in found or "jax" not in found:
        return []
    for text in importlib.metadata.requires("jax") or []:
        requirement = Requirement(text)
        marker: Any = requirement.marker
        if requirement.name != "libtpu" or marker is None or not marker.evaluate({"extra": "tpu"}):
            continue
        if not requirement.specifier.contains(found["libtpu"], prereleases=True):
            text = f"libtpu {found['libtpu']}, but jax {found['jax']} asks for libtpu{requirement.specifier}"
            return [warn("versions", text, f"pip install 'libtpu{requirement.specifier}'")]
    return []


def _release(version: str, parts: int) -> tuple[int, ...]:
    return Version(version).release[:parts]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

"""Sandbox settings for tests: limits that small programs keep, in the tier that is the fastest and holds everywhere.

And the small script that most of them run.
"""

from typing import Any

from iterpref_jax.codeflow.sandbox import Program, SandboxSettings

SMALL: dict[str, Any] = dict(
    tier="rlimit",
    allow_unsafe=True,
    wall_s=5.0,
    cpu_s=3,
    memory_mb=512,
    output_kb=256,
    workers=2,
    warm=False,
    preload=(),
    python="",
)


def sandbox_settings(**changes: Any) -> SandboxSettings:
    """Returns small settings but for these changes."""
    return SandboxSettings(**SMALL | changes)


SHORT = sandbox_settings(wall_s=3.0, cpu_s=2, memory_mb=256)
ADD = "def add(a, b):\n    return a + b\n"


def script(code: str, tests: str = "assert add(2, 3) == 5\n", setup: str = "") -> Program:
    return Program(code=code, tests=tests, setup=setup, style="script")

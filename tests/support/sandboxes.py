"""Sandbox settings for tests: limits that small programs keep, in the tier that is the fastest and holds everywhere."""

from typing import Any

from iterpref_jax.codeflow.sandbox import SandboxSettings

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

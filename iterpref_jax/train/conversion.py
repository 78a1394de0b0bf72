"""A checkpoint's arrays for a run that keeps its state in other dtypes, or with other copies, than the one that saved.

params/NAME              the parameters
opt_state/...            the optimizer's state; with `optimizer.master`:
opt_state/params/NAME    float32 copies of the parameters
opt_state/rule/...       and the optimizer's state
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from iterpref_jax.progress import say
from iterpref_jax.train.layerwise import to_device

_PARAMS, _STATE, _COPIES, _RULE = "params/", "opt_state/", "opt_state/params/", "opt_state/rule/"


def sources(wanted: Mapping[str, jax.ShapeDtypeStruct], dtypes: Mapping[str, str]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the stored arrays from which the `wanted` ones are made, in the `dtypes` that they were saved in.

    Raises:
        KeyError: an array that is not stored, nor one that it could be made from.
    """
    found = {}
    for name, target in wanted.items():
        stored = _source(name, target, dtypes)
        found[stored] = jax.ShapeDtypeStruct(target.shape, dtypes[stored], sharding=target.sharding)
    return found


def converted(step: int, read: Mapping[str, jax.Array], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """Returns the `wanted` arrays, made from those that were `read` (see `sources`); says what was changed."""
    made, used, changes = [], set(), {}
    for name, target in wanted.items():
        stored = _source(name, target, {key: str(array.dtype) for key, array in read.items()})
        array = read[stored]
        if array.dtype != target.dtype:
            changes[f"{array.dtype} -> {target.dtype}"] = name
        # The step takes the memory of its state, so that no two arrays may share theirs.
        made.append(_made(array, target) if array.dtype != target.dtype or stored in used else array)
        used.add(stored)
    for change, name in changes.items():
        say(f"checkpoint {step}: {name} and others change {change}: the run goes on, rounded otherwise than before")
    return made


def _source(name: str, target: jax.ShapeDtypeStruct, stored: Mapping[str, str]) -> str:
    """Returns the name of the stored array from which `name` is made."""
    if name.startswith(_PARAMS):
        copy = _COPIES + name.removeprefix(_PARAMS)
        found = [copy, name] if target.dtype == jnp.float32 else [name]
    elif name.startswith(_COPIES):
        found = [name, _PARAMS + name.removeprefix(_COPIES)]
    elif name.startswith(_RULE):
        found = [name, _STATE + name.removeprefix(_RULE)]
    else:
        found = [name, _RULE + name.removeprefix(_STATE)]
    present = [each for each in found if each in stored]
    if not present:
        raise KeyError(f"it holds no {name}")
    return present[0]


def _made(array: jax.Array, target: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.jit(lambda x: to_device(x).astype(target.dtype), out_shardings=target.sharding)(array)

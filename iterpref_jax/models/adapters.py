"""Adapted models: the frozen base read and quantised, adapters merged into it, and adapters as a PEFT folder."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from iterpref_jax.errors import UserError
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.layers import Linear
from iterpref_jax.models.lora import LORA_A, LORA_B, TARGETS, Lora
from iterpref_jax.models.quantized import dequantize, quantize
from iterpref_jax.models.transformer import Params, linears, param_shardings
from iterpref_jax.models.weights import weights
from iterpref_jax.parallel.rules import Placement

_OF_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_STORED = ("kernel_codes", "kernel_scales")


def check_targets(config: ModelConfig, lora: Lora) -> None:
    """Refuses targets that the model does not have.

    Raises:
        UserError: such a target, with those that there are.
    """
    adapted = {path for path, module in linears(config, lora).items() if module.is_adapted}
    kernels = {
        weight.path[:-1]: weight.name.split(".")[-2] for weight in weights(config) if weight.path[-1] == "kernel"
    }
    for target in lora.targets if lora.rank else ():
        if target not in {kernels[path] for path in adapted}:
            known = sorted(set(kernels.values()) & set(TARGETS)) if config.mlp != "experts" else _OF_ATTENTION
            raise UserError(
                f"model.lora.targets has {target!r}, and this {config.model_type} has no such kernel to adapt; it has "
                f"{', '.join(known)}"
            )


def load_base(folder: str, config: ModelConfig, dtype: str, placement: Placement | None, lora: Lora) -> Params:
    """Reads the base of an adapted model; a kernel that is stored quantised exists whole only while it is read.

    Raises:
        UserError: see `hf_checkpoint.load`.
    """
    base = lora.switched_off()
    modules, flat = linears(config, base), {}
    shardings = traverse_util.flatten_dict(param_shardings(config, dtype, placement, base)) if placement else None
    for path, leaf in hf_checkpoint.leaves(folder, config, dtype, placement):
        module = modules.get(path[:-1])
        if module is None or not module.is_quantized or path[-1] != "kernel":
            flat[path] = leaf
            continue
        places = [(*path[:-1], name) for name in _STORED]
        out = tuple(shardings[place] for place in places) if shardings else None
        store = jax.jit(_quantize_layers, static_argnums=(1, 2), out_shardings=out)
        flat |= zip(places, store(leaf, base.quantize, module.block_dim), strict=True)
    return traverse_util.unflatten_dict(flat)


def _quantize_layers(kernels: jax.Array, kind: str, dim: int) -> tuple[jax.Array, jax.Array]:
    # One after the other: what `quantize` computes on the way takes more than a kernel itself, for as many as at once.
    return jax.lax.map(lambda kernel: quantize(kernel, kind, dim), kernels)


def trained_names(config: ModelConfig, lora: Lora) -> set[str]:
    """Returns the names of the stored tensors that adapters change."""
    adapted = {path for path, module in linears(config, lora).items() if module.is_adapted}
    changed = [weight for weight in weights(config) if weight.path[-1] == "kernel" and weight.path[:-1] in adapted]
    return {name for weight in changed for name in weight.names(config)}


def merged(config: ModelConfig, lora: Lora, params: Params) -> Params:
    """Returns parameters without adapters that compute the same.

    An adapted kernel is a function of its place `(layer,)` that returns one layer's kernel, float32: merged kernels of
    a whole model need not fit beside it.
    """
    flat: dict[Any, Any] = traverse_util.flatten_dict(params)
    for path, module in linears(config, lora).items():
        if module.is_adapted:
            names = (*(_STORED if module.is_quantized else ("kernel",)), LORA_A, LORA_B)
            parts = {name: flat.pop((*path, name)) for name in names}
            flat[(*path, "kernel")] = functools.partial(_merged_layer, module, parts)
    return traverse_util.unflatten_dict(flat)


def merged_arrays(config: ModelConfig, lora: Lora, params: Params, dtype: str) -> Params:
    """Returns `merged` parameters with every kernel as one array of `dtype`, for decoding."""

    def stacked(leaf: Any) -> jax.Array:
        if not callable(leaf):
            return leaf
        at: Any = leaf
        return jnp.stack([at((layer,)).astype(dtype) for layer in range(config.num_hidden_layers)])

    return jax.tree.map(stacked, merged(config, lora, params))


def save_peft(folder: str, config: ModelConfig, lora: Lora, adapters: Params, base_model: str) -> None:
    """Writes adapters as a folder that `peft.PeftModel.from_pretrained` loads onto the base model.

    PEFT keeps lora_A as [rank, in] and lora_B as [out, rank], in and out flattened as in the Hugging Face kernel.
    """
    out, tensors = Path(folder), {}
    out.mkdir(parents=True, exist_ok=True)
    flat, names = traverse_util.flatten_dict(adapters), {}
    for weight in weights(config):
        *path, leaf = weight.path
        # A projection's bias lies beside its kernel.
        if leaf != "kernel" or (*path, LORA_A) not in flat:
            continue
        a, b = np.asarray(flat[(*path, LORA_A)]), np.asarray(flat[(*path, LORA_B)])
        for layer, name in enumerate(weight.names(config)):
            module = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(a[layer].reshape(-1, lora.rank).T)
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(b[layer].reshape(lora.rank, -1).T)
            names[module.rpartition(".")[2]] = None
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(names),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    # The config comes last: a folder without it is an export that did not end.
    config_file, weights_file = (out / name for name in ADAPTER_FILES)
    config_file.unlink(missing_ok=True)
    safetensors.numpy.save_file(tensors, weights_file, metadata={"format": "pt"})
    config_file.write_text(json.dumps(about, indent=2) + "\n")


def _merged_layer(module: Linear, parts: dict[str, jax.Array], place: tuple[int, ...]) -> jax.Array:
    return _merge(parts, jnp.int32(place[0]), module.lora, module.block_dim)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _merge(parts: dict[str, jax.Array], layer: jax.Array, lora: Lora, block_dim: int) -> jax.Array:
    one = {name: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False) for name, leaf in parts.items()}
    if "kernel" in one:
        kernel = one["kernel"].astype(jnp.float32)
    else:
        codes, scales = (one[name] for name in _STORED)
        kernel = dequantize(codes, scales, lora.quantize, block_dim, jnp.dtype(jnp.float32))
    # Computed once for good: a GPU's or TPU's own choice for float32 are products of 10 or 8 bits.
    product = jnp.tensordot(one[LORA_A], one[LORA_B], 1, precision=jax.lax.Precision.HIGHEST)
    return kernel + lora.scale * product

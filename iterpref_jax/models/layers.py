"""The parts of a decoder layer. Parameters name their dims; `parallel.rules` says where the dims live.

Letters: R row, T token, D embed, F mlp.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.lora import Lora
from iterpref_jax.models.quantized import dequantize, quantize
from iterpref_jax.ops.kept import MLP, PRODUCTS
from iterpref_jax.parallel.rules import Placement

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, ins: int) -> jax.Array:
    """Returns x [..., in dims] times kernel [in dims, out dims].

    The gradient of the kernel transposes the narrower of x and the output's gradient. JAX's own rule transposes the
    latter, which XLA does on a CPU together with all that it is computed from (EXPERIMENTS.md).
    """
    return jnp.tensordot(x, kernel, ins)


def _product_forward(x: jax.Array, kernel: jax.Array, ins: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.tensordot(x, kernel, ins), (x, kernel)


def _product_backward(ins: int, kept: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    tokens, outs = list(range(x.ndim - ins)), list(range(ins, kernel.ndim))
    x_grad = jnp.tensordot(grad, kernel, (list(range(len(tokens), grad.ndim)), outs))
    if math.prod(kernel.shape[:ins]) <= math.prod(kernel.shape[ins:]):
        return x_grad, jnp.tensordot(x, grad, (tokens, tokens))
    return x_grad, jnp.moveaxis(jnp.tensordot(grad, x, (tokens, tokens)), list(range(len(outs))), outs)


product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def spread(vector: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Returns a bias or a norm's weight in `dtype`, broadcast to `shape`.

    Its gradient is a sum over all tokens, kept in float32: JAX's own rule adds in the compute dtype, and a sum in
    bfloat16 stands still where it is 256 times what is added.
    """
    return jnp.broadcast_to(vector.astype(dtype), shape)


def _spread_forward(vector: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    return spread(vector, shape, dtype), vector


def _spread_backward(shape: tuple[int, ...], dtype: jnp.dtype, vector: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    tokens = tuple(range(len(shape) - vector.ndim))
    return (grad.sum(tokens, dtype=jnp.float32).astype(vector.dtype),)


spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def lookup(table_VD: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the table's rows of `tokens`; its gradient is summed in float32, whatever the table is stored in."""
    return table_VD[tokens]


def _lookup_forward(table_VD: jax.Array, tokens: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return table_VD[tokens], (table_VD, tokens)


def _lookup_backward(kept: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, None]:
    table_VD, tokens = kept
    sums_VD = jnp.zeros(table_VD.shape, jnp.float32).at[tokens].add(grad.astype(jnp.float32))
    return sums_VD.astype(table_VD.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes the parameters of one model: knows the size of every dim, the random keys and the dtype."""

    config: ModelConfig
    lora: Lora
    rngs: nnx.Rngs
    dtype: jnp.dtype

    def shape(self, dims: tuple[str, ...]) -> tuple[int, ...]:
        config = self.config
        sizes = {
            "vocab": config.vocab_size,
            "embed": config.hidden_size,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "mlp": config.intermediate_size,
            "expert": config.num_experts,
            "lora_rank": self.lora.rank,
        }
        return tuple(sizes[dim] for dim in dims)

    def normal(self, *dims: str) -> nnx.Param:
        """Drawn from N(0, initializer_range^2), as Hugging Face initialises these families."""
        value = jax.random.normal(self.rngs.params(), self.shape(dims), jnp.float32) * self.config.initializer_range
        return nnx.Param(value.astype(self.dtype), dims=dims)

    def uniform(self, *dims: str) -> nnx.Param:
        """Drawn from U(-b, b), b = 1 / sqrt(fan in), float32: how PEFT initialises A."""
        shape = self.shape(dims)
        bound = 1 / math.sqrt(math.prod(shape[:-1]))
        return nnx.Param(jax.random.uniform(self.rngs.params(), shape, jnp.float32, -bound, bound), dims=dims)

    def constant(self, value: float, *dims: str, dtype: jnp.dtype | None = None) -> nnx.Param:
        return nnx.Param(jnp.full(self.shape(dims), value, dtype or self.dtype), dims=dims)


class Linear(nnx.Module):
    """x [..., in dims] -> [..., out dims], with an optional bias and an optional adapter.

    The kernel [stack dims, in dims, out dims] is one leaf, or codes and scales where it is stored quantised.
    """

    def __init__(
        self,
        make: Maker,
        name: str,
        ins: tuple[str, ...],
        outs: tuple[str, ...],
        *,
        bias: bool,
        stack: tuple[str, ...] = (),
    ):
        self.ins, self.lora, self.has_bias = len(ins), make.lora, bias
        # Adapters of single experts are not implemented: their kernels stay as they are.
        is_target = make.lora.targeted(name) and not stack
        self.is_adapted, self.is_quantized = is_target and make.lora.rank > 0, is_target and bool(make.lora.quantize)
        dims = (*stack, *ins, *outs)
        kernel = make.normal(*dims)
        if self.is_quantized:
            codes, scales = quantize(kernel[...], make.lora.quantize, self.block_dim)
            self.kernel_codes, self.kernel_scales = nnx.Param(codes, dims=dims), nnx.Param(scales, dims=dims)
        else:
            self.kernel = kernel
        if bias:
            self.bias = make.constant(0, *outs)
        if self.is_adapted:
            self.lora_a = make.uniform(*ins, "lora_rank")
            self.lora_b = make.constant(0, "lora_rank", *outs, dtype=jnp.dtype(jnp.float32))

    @property
    def block_dim(self) -> int:
        """The dim that blocks of a quantised kernel lie along: the last of the in dims."""
        return self.ins - 1

    def dense(self, dtype: jnp.dtype) -> jax.Array:
        """Returns the kernel as one array of `dtype`, without the adapter."""
        if not self.is_quantized:
            return self.kernel[...].astype(dtype)
        return dequantize(self.kernel_codes[...], self.kernel_scales[...], self.lora.quantize, self.block_dim, dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        out: jax.Array = product(x, self.dense(x.dtype), self.ins)
        if self.is_adapted:
            inner = jnp.tensordot(x, self.lora_a[...].astype(x.dtype), self.ins) * self.lora.scale
            out += jnp.tensordot(inner, self.lora_b[...].astype(x.dtype), 1)
        if self.has_bias:
            bias: jax.Array = spread(self.bias[...], out.shape, out.dtype)
            out += bias
        return out


class Norm(nnx.Module):
    """RMSNorm, RMSNorm whose weight is an offset from 1 (Gemma), or LayerNorm, over the last dim."""

    def __init__(self, make: Maker, dim: str = "embed"):
        self.kind, self.epsilon = make.config.norm, make.config.norm_eps
        self.weight = make.constant(0 if self.kind == "rms_norm_offset" else 1, dim)
        if self.kind == "layer_norm":
            self.bias = make.constant(0, dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        if self.kind == "layer_norm":
            x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        # Each is rounded to the compute dtype where `transformers` rounds it.
        if self.kind == "rms_norm_offset":
            return (x32 * (1 + self.weight[...].astype(jnp.float32))).astype(x.dtype)
        if self.kind == "layer_norm":
            return (x32 * self.weight[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)
        weight: jax.Array = spread(self.weight[...], x.shape, x.dtype)
        return weight * x32.astype(x.dtype)


class Mlp(nnx.Module):
    """down(act(gate(x)) * up(x)), or plain: down(act(up(x)))."""

    def __init__(self, make: Maker):
        config = make.config
        self.is_gated, self.activation = config.mlp == "gated", ACTIVATIONS[config.hidden_act]
        if self.is_gated:
            self.gate = Linear(make, "gate", ("embed",), ("mlp",), bias=config.mlp_bias)
        self.up = Linear(make, "up", ("embed",), ("mlp",), bias=config.mlp_bias)
        self.down = Linear(make, "down", ("mlp",), ("embed",), bias=config.mlp_bias)

    def __call__(self, x_RTD: jax.Array, placement: Placement | None) -> tuple[jax.Array, None]:
        up = checkpoint_name(self.up(x_RTD), MLP)
        inner = self.activation(checkpoint_name(self.gate(x_RTD), MLP)) * up if self.is_gated else self.activation(up)
        return checkpoint_name(self.down(inner), PRODUCTS), None

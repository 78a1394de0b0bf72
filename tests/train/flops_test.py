"""FLOPs by formula against numbers worked out by hand and against the products in the traced gradient."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.lora import Lora, joined, parted
from iterpref_jax.models.transformer import abstract_params
from iterpref_jax.ops.linear_logp import Projection, block_size, gather_sources, linear_logp
from iterpref_jax.ops.tree_attention import query_blocks
from iterpref_jax.train.flops import Counts, executed_flops, forward_flops, laid_out, model_flops, seen, walked
from tests.support.models import COMPUTE, model_config

SMALL = dict(
    hidden_size=8, intermediate_size=12, num_attention_heads=4, num_key_value_heads=2, head_dim=2, vocab_size=10
)


def test_forward_flops_of_a_worked_example():
    config = model_config(**SMALL, num_hidden_layers=3)
    # A token meets 8 x 2 x (4 + 2 + 2 + 4) attention and 3 x 8 x 12 MLP entries in each of 3 layers.
    matrices = 2 * (192 + 288) * 5 * 3
    # A score and its share of the output are two products of length 2 in each of 4 heads.
    assert (
        forward_flops(config, Counts(tokens=5, logits=7 * 10, scores=11)) == matrices + 4 * 4 * 2 * 11 + 2 * 8 * 10 * 7
    )


def test_a_training_step_needs_three_forward_passes():
    config, counts = model_config(**SMALL), Counts(tokens=5, logits=7 * 10, scores=11)
    assert model_flops(config, counts) == 3 * forward_flops(config, counts)


def test_a_token_sees_its_branch_up_to_it_and_no_further_than_its_layers_window():
    layers = dict(layer_types=("sliding_attention", "full_attention"), sliding_window=3)
    mixed = dataclasses.replace(model_config(), **layers)
    # Two branches on one root: positions 0..4, and 2 again. Keys seen 1 2 3 4 5 3, with a window 1 2 3 3 3 3.
    counts = seen(mixed, np.array([0, 1, 2, 3, 4, 2]), targets=2)
    assert counts == Counts(tokens=6, logits=2 * 97, scores=15 + 18)  # the vocabulary is 97


def test_rows_compute_whole_blocks_of_queries_and_of_the_vocabulary():
    config = model_config(num_hidden_layers=2)
    assert query_blocks(300) == [(0, 128), (128, 256), (256, 300)]
    per_row = 128 * 128 + 128 * 256 + 44 * 300
    counts = laid_out(config, rows=3, tokens=300, targets=70, vocab=128)
    assert counts == Counts(tokens=900, logits=3 * 70 * 128, scores=3 * 2 * per_row)


def test_kernels_compute_whole_blocks_in_which_anything_is_visible():
    config = dataclasses.replace(model_config(), layer_types=("sliding_attention", "full_attention"), sliding_window=4)
    # A chain of 8 beside one of 4, in blocks of 4: each meets itself and, in the first, the second half the first.
    until, depth = np.array([[8] * 8 + [12] * 4]), np.array([[*range(8), *range(4)]])
    # A window of 4 still reaches from the first query of the second block into the first block.
    assert walked(config, until, depth, queries=4, keys=4) == 2 * 4 * 16
    # In one of 1 each meets itself alone; the row is padded to whole blocks.
    narrow = dataclasses.replace(config, sliding_window=1)
    assert walked(narrow, until[:, :11], depth[:, :11], queries=4, keys=4) == (3 + 4) * 16


def test_a_kernel_computes_the_scores_twice_in_its_backward_pass():
    config, one = model_config(**SMALL), Counts(tokens=0, logits=0, scores=1)
    flops = {
        name: executed_flops(config, one, remat="none", attention=name, keeps_logits=True) for name in ("xla", "tpu")
    }
    # 4 heads of 2: a product is 16 FLOPs a score.
    assert flops == {"xla": 7 * 16, "tpu": 9 * 16}


SHAPES = {
    "qwen2": dict(model_type="qwen2"),
    "tied, plain MLP": dict(model_type="starcoder2", use_bias=True, norm_epsilon=1e-5, tie_word_embeddings=True),
    "norms behind the MLP": dict(
        model_type="gemma3_text", query_pre_attn_scalar=8, sliding_window=64, hidden_activation="gelu_pytorch_tanh"
    ),
    "experts": dict(model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
}


@pytest.mark.parametrize(
    ("remat", "kept_bytes"),
    [("full", 0), ("none", 2**20), ("save_attention", 0), ("save_mlp", 0), ("save_products", 0)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_executed_flops_are_the_products_in_the_traced_gradient(shape, remat, kept_bytes):
    config = model_config(**SHAPES[shape], num_hidden_layers=3, vocab_size=300)
    decoder = Decoder(config, dataclasses.replace(COMPUTE, remat=remat))
    counts, traced = traced_gradient(decoder, kept_bytes)
    expected = executed_flops(config, counts, remat=remat, attention="xla", keeps_logits=kept_bytes > 0)
    assert expected == products(traced)


@pytest.mark.parametrize(("remat", "kept_bytes"), [("full", 0), ("none", 2**20), ("save_products", 0)])
def test_an_adapted_model_has_no_products_for_gradients_of_its_kernels(remat, kept_bytes):
    config = model_config(**SHAPES["qwen2"], num_hidden_layers=3, vocab_size=300)
    lora = Lora(rank=RANK, alpha=1.0, targets=("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"), quantize="")
    decoder = Decoder(config, dataclasses.replace(COMPUTE, remat=remat), lora=lora)
    counts, traced = traced_gradient(decoder, kept_bytes)
    how = dict(remat=remat, attention="xla", keeps_logits=kept_bytes > 0)
    assert executed_flops(config, counts, **how, lora=lora) == products(traced, apart=RANK)
    assert executed_flops(config, counts, **how, lora=lora) < executed_flops(config, counts, **how)


# Of adapters; no other dim is as long.
RANK = 13


def traced_gradient(decoder: Decoder, kept_bytes: int) -> tuple[Counts, Any]:
    """Returns the counts of two rows, and the jaxpr of the gradients of what is trained, without what nothing needs."""
    config = decoder.config
    projection = Projection(vocab=128, targets=2 * 70, kept_bytes=kept_bytes)

    def loss(trained, frozen, ints_RT, ints_RG):
        params = joined(frozen, trained)
        hidden_RTD = decoder.hidden(params, ints_RT, ints_RT, ints_RT)
        hidden_RGD = gather_sources(hidden_RTD, ints_RG)
        return jnp.sin(linear_logp(hidden_RGD, decoder.head(params), ints_RG, ints_RG > 0, projection)[0]).sum()

    ints = [jax.ShapeDtypeStruct((2, size), jnp.int32) for size in (200, 70)]
    traced = jax.make_jaxpr(jax.grad(loss))(*parted(abstract_params(config, "float32", decoder.lora)), *ints).jaxpr
    # One tile of all targets, 300 ids in blocks of 128.
    assert block_size(128, 300) == 128
    counts = laid_out(config, rows=2, tokens=200, targets=70, vocab=384)
    return counts, dce_jaxpr(traced, [True] * len(traced.outvars))[0]


def products(jaxpr, apart: int = 0) -> int:
    """FLOPs of the matrix products in a jaxpr, a scan's body times its length; the branches of a switch are alike.

    Products with a dim of length `apart` are left out.
    """
    total = 0
    for eqn in jaxpr.eqns:
        inner = [products(sub, apart) for sub in jaxprs_in_params(eqn.params)]
        if eqn.primitive.name == "dot_general" and apart not in {*eqn.invars[0].aval.shape, *eqn.invars[1].aval.shape}:
            (contracted, _), _ = eqn.params["dimension_numbers"]
            length = math.prod(eqn.invars[0].aval.shape[dim] for dim in contracted)
            total += 2 * length * math.prod(eqn.outvars[0].aval.shape)
        elif eqn.primitive.name == "ragged_dot_general":
            total += ragged_product(*(var.aval.shape for var in (*eqn.invars[:2], *eqn.outvars)))
        elif eqn.primitive.name == "scan":
            total += eqn.params["length"] * sum(inner)
        elif eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner)
    return total


def ragged_product(left, right, out) -> int:
    """Each sorted token meets one expert's kernel, whichever of the three arrays has a dim of experts."""
    tokens = left[0]
    widths = right[1:] if len(right) == 3 else out[1:]
    return 2 * tokens * math.prod(widths)

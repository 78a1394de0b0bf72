"""Context parallel: who does what, what it costs, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.models import shares
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.transformer import init_params, param_shardings
from iterpref_jax.parallel.mesh import AXES
from iterpref_jax.parallel.rules import Placement
from tests.support.meshes import placed
from tests.support.models import COMPUTE, model_config

EXPERTS = dict(
    model_type="qwen3_moe", num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True
)


@dataclasses.dataclass(frozen=True)
class _Mesh:
    """Sizes alone, of more devices than there are."""

    shape: dict[str, int]


@pytest.mark.parametrize(
    ("fields", "sizes", "message"),
    [
        (dict(), dict(fsdp=4, expert=2), r"mesh\.expert = 2 has no effect on qwen2, .* set it to 1"),
        (EXPERTS, dict(fsdp=2, expert=4), r"mesh\.expert is 4, but the model has 6 experts: .* at most 3"),
        (dict(num_attention_heads=6), dict(sequence=4), r"4 x 1, but the model has 6 attention heads.* fits is 2"),
        (dict(num_attention_heads=8), dict(sequence=4, tensor=4), r"4 x 4, .* fits is 2"),
        (dict(num_attention_heads=6), dict(sequence=2, tensor=4), r"6 is no multiple of 4"),
    ],
)
def test_a_mesh_over_which_a_model_cannot_be_spread_is_refused(fields, sizes, message):
    heads = fields.get("num_attention_heads", 4)
    config = model_config(**(fields | dict(num_attention_heads=heads, num_key_value_heads=2)))
    placement = Placement(_Mesh(dict.fromkeys(AXES, 1) | sizes))
    with pytest.raises(UserError, match=message):
        shares.check_model(config, "full", placement)


def test_keeping_products_of_experts_that_are_always_made_again_is_refused():
    with pytest.raises(UserError, match=r"model\.compute\.remat = 'save_mlp' has no effect on experts"):
        shares.check_model(model_config(**EXPERTS), "save_mlp", placed(expert=2))


def test_rows_that_cannot_be_shared_evenly_are_refused_with_the_next_size():
    with pytest.raises(UserError, match=r"rows\.tokens is 4090, but mesh\.sequence .* 4 ways; make it 4092"):
        shares.check_tokens(4090, placed(sequence=4))
    shares.check_tokens(4092, placed(sequence=4))


@pytest.mark.parametrize("targets", [1, 5, 8, 11])
def test_targets_are_dealt_like_cards_and_come_back_in_order(targets):
    placement = placed(sequence=4)
    numbers = jnp.arange(1, 2 * targets + 1).reshape(2, targets)
    dealt = shares.dealt(placement, numbers)
    np.testing.assert_array_equal(shares.undealt(placement, dealt, targets), numbers)
    used = [int((part > 0).sum()) for part in np.split(np.asarray(dealt[0]), 4)]
    assert max(used) - min(used) <= 1


def gradients(decoder):
    def total(params, tokens, depth, until):
        return jnp.sum(jnp.sin(decoder.hidden(params, tokens, depth, until).astype(jnp.float32)))

    return jax.jit(jax.grad(total))


@functools.cache
def compiled(tokens, **sizes):
    config = model_config(num_attention_heads=8, num_key_value_heads=2, hidden_size=64)
    placement = placed(**sizes)
    decoder = Decoder(config, dataclasses.replace(COMPUTE, attention="auto"), placement)
    shapes = jax.eval_shape(functools.partial(init_params, config, 0, "float32"))
    params = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        param_shardings(config, "float32", placement),
    )
    row = jax.ShapeDtypeStruct((1, tokens), jnp.int32, sharding=placement.sharding(("row", "token"), (1, tokens)))
    return gradients(decoder).lower(params, row, row, row).compile()


def test_a_device_holds_its_share_of_a_rows_activations_only():
    # Layer inputs, projections and the MLP: all but attention's blocks, which are small here.
    alone, shared = (compiled(2048, sequence=parts).memory_analysis().temp_size_in_bytes for parts in (1, 8))
    assert shared < alone / 5


def test_a_layer_exchanges_tokens_for_heads_and_no_device_has_all_tokens_of_an_activation():
    alone, shared = (compiled(2048, sequence=parts).as_text() for parts in (1, 8))
    whole_rows = ["f32[1,2048,64]", "f32[1,2048,48]"]
    assert all(shape in alone for shape in whole_rows)
    assert "all-to-all" in shared
    assert not [shape for shape in whole_rows if shape in shared]

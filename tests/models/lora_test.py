"""Adapters: they start by changing nothing, they alone are trained, and merging them changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.models.adapters import check_targets, merged_arrays
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.lora import NO_LORA, Lora, adapters_of, base_of, joined, parted
from iterpref_jax.models.quantized import FORMATS, NF4, block_size, dequantize, quantize
from iterpref_jax.models.transformer import init_params
from tests.support.models import COMPUTE, model_config

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOKENS = jnp.array(np.random.default_rng(0).integers(0, 97, (2, 24)))
PLACES = jnp.broadcast_to(jnp.arange(24), (2, 24)), jnp.full((2, 24), 24)


def lora(**fields):
    return Lora(**(dict(rank=4, alpha=8.0, targets=ALL, quantize="") | fields))


def hidden(decoder, params):
    return np.asarray(jax.jit(decoder.hidden)(params, TOKENS, *PLACES))


def adapted(config, settings, seed=0):
    """A decoder and parameters whose adapters have been "trained": B is not zero."""
    params = init_params(config, seed, "float32", lora=settings)
    leaves, tree = jax.tree.flatten(adapters_of(params))
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return Decoder(config, COMPUTE, lora=settings), joined(base_of(params), jax.tree.unflatten(tree, noisy))


@pytest.mark.parametrize("quantize", ["", *FORMATS])
def test_a_fresh_adapter_changes_nothing(quantize):
    settings, config = lora(quantize=quantize), model_config()
    params = init_params(config, 0, "float32", lora=settings)
    with_adapters = hidden(Decoder(config, COMPUTE, lora=settings), params)
    without = hidden(Decoder(config, COMPUTE, lora=settings.switched_off()), base_of(params))
    np.testing.assert_array_equal(with_adapters, without)


@pytest.mark.parametrize("target", ALL)
def test_every_target_has_an_adapter_that_acts(target):
    decoder, params = adapted(model_config(), lora(targets=(target,)))
    base = hidden(Decoder(decoder.config, COMPUTE), base_of(params))
    assert len(jax.tree.leaves(adapters_of(params))) == 2
    assert np.abs(hidden(decoder, params) - base).max() > 1e-3


@pytest.mark.parametrize("name", ["rank", "alpha"])
def test_rank_and_alpha_change_the_output(name):
    first, params = adapted(model_config(), lora())
    second, others = adapted(model_config(), lora(**{name: 2}))
    others = params if name == "alpha" else others
    assert np.abs(hidden(first, params) - hidden(second, others)).max() > 1e-3


@pytest.mark.parametrize("quantize", ["", *FORMATS])
@pytest.mark.parametrize("family", ["qwen2", "starcoder2"])
def test_merged_adapters_compute_what_adapters_compute(family, quantize):
    targets = ("q_proj", "c_fc", "c_proj") if family == "starcoder2" else ALL
    config = model_config(model_type=family)
    decoder, params = adapted(config, lora(quantize=quantize, targets=targets))
    plain = merged_arrays(config, decoder.lora, params, "float32")
    np.testing.assert_allclose(hidden(Decoder(config, COMPUTE), plain), hidden(decoder, params), atol=1e-4, rtol=1e-4)


def test_parted_parameters_join_again():
    _, params = adapted(model_config(), lora())
    trained, frozen = parted(params)
    assert jax.tree.structure(joined(frozen, trained)) == jax.tree.structure(params)
    whole = init_params(model_config(), 0, "float32")
    assert parted(whole) == (whole, {})


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_nf4_keeps_its_own_values_and_rounds_others_to_the_nearest(dim):
    rng = np.random.default_rng(1)
    shape = [3, 4, 5]
    shape[dim] = 128
    scale = rng.uniform(0.5, 2, [size if i != dim else 2 for i, size in enumerate(shape)])
    exact = NF4[rng.integers(0, 16, shape)] * np.repeat(scale, 64, axis=dim)
    # Every block holds its largest value.
    index = [slice(None)] * 3
    index[dim] = slice(0, None, 64)
    exact[tuple(index)] = scale
    exact = exact.astype(np.float32)
    codes, scales = quantize(jnp.array(exact), "nf4", dim)
    assert codes.nbytes == exact.size // 2
    np.testing.assert_allclose(dequantize(codes, scales, "nf4", dim, jnp.float32), exact, rtol=1e-6)
    noisy = rng.normal(size=shape).astype(np.float32)
    codes, scales = quantize(jnp.array(noisy), "nf4", dim)
    found = np.asarray(dequantize(codes, scales, "nf4", dim, jnp.float32))
    spread = np.repeat(np.asarray(scales), 64, axis=dim)
    nearest = NF4[np.abs(noisy[..., None] / spread[..., None] - NF4).argmin(-1)] * spread
    np.testing.assert_allclose(found, nearest, rtol=1e-5, atol=1e-6)


def test_int8_is_within_half_a_step_of_every_number():
    kernel = np.random.default_rng(2).normal(size=(192, 8)).astype(np.float32)
    codes, scales = quantize(jnp.array(kernel), "int8", 0)
    error = np.abs(np.asarray(dequantize(codes, scales, "int8", 0, jnp.float32)) - kernel)
    assert (error <= np.repeat(np.asarray(scales), 64, axis=0) / 254 * 1.0001).all()


def test_blocks_divide_their_dim():
    assert [block_size(size) for size in (64, 3584, 80, 24, 2)] == [64, 64, 40, 24, 2]
    with pytest.raises(UserError, match="even"):
        block_size(7)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"targets": ("q_prj",)}, "did you mean 'q_proj'"),
        ({"targets": ()}, "targets is empty"),
        ({"quantize": "nf5"}, "did you mean 'nf4'"),
        ({"rank": -1}, "rank must be at least 0"),
        ({"alpha": 0.0}, "alpha above 0"),
    ],
)
def test_bad_settings_are_refused_by_name(fields, said):
    with pytest.raises(UserError, match=said):
        lora(**fields)


@pytest.mark.parametrize(
    ("family", "target"), [("qwen2", "c_fc"), ("starcoder2", "gate_proj"), ("qwen3_moe", "up_proj")]
)
def test_a_target_that_the_model_does_not_have_is_refused(family, target):
    with pytest.raises(UserError, match=f"model.lora.targets has '{target}'"):
        check_targets(model_config(model_type=family), lora(targets=("q_proj", target)))


def test_a_model_without_adapters_has_none():
    assert adapters_of(init_params(model_config(), 0, "float32", lora=NO_LORA)) == {}

"""Which token is drawn: the filters against their definitions, and draws that depend on nothing else."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.decode import sampling

VOCAB = 12


@functools.cache
def jitted(function):
    return jax.jit(function)


def sample(logits, seeds, positions, temperature=1.0, top_k=0, top_p=1.0):
    rows = len(logits)
    key_B = sampling.draw_keys(jnp.array(seeds, jnp.uint32), jnp.array(positions, jnp.int32))
    settings = [
        np.broadcast_to(np.array(value, kind), rows)
        for value, kind in ((temperature, np.float32), (top_k, np.int32), (top_p, np.float32))
    ]
    return jitted(sampling.sample)(jnp.array(logits, jnp.float32), key_B, *settings)


def kept(logits, temperature, top_k, top_p):
    """The tokens that may be drawn, by the definition: float64, one token at a time."""
    scaled = np.array(logits, np.float64) / temperature
    mask = np.ones(len(logits), bool)
    if top_k:
        mask = np.array([(scaled > x).sum() < top_k for x in scaled])
    weight = np.where(mask, np.exp(scaled - scaled.max()), 0)
    if top_p < 1:
        above = np.array([weight[scaled > x].sum() for x in scaled]) / weight.sum()
        mask &= (above < top_p) | (scaled == scaled.max())
    return mask


def ours(logits, temperature, top_k, top_p):
    """The mask that the sampler draws from."""
    logits = jnp.array([logits], jnp.float32)
    args = jnp.array([top_k], jnp.int32), jnp.array([top_p], jnp.float32)
    return np.asarray(jitted(sampling._kept)(logits, (logits - logits.max()) / np.float32(temperature), *args))[0]


# Whole numbers among them tie.
any_logits = st.lists(st.floats(-30, 30, width=32) | st.integers(-2, 2), min_size=VOCAB, max_size=VOCAB)


@hypothesis.settings(max_examples=300)
@hypothesis.given(any_logits, st.sampled_from([0.3, 1.0, 2.0]), st.integers(0, VOCAB + 2), st.floats(0.0, 1.0))
def test_the_tokens_kept_are_those_of_the_definition(logits, temperature, top_k, top_p):
    wanted = kept(logits, temperature, top_k, top_p)
    # Where a sum meets the share within rounding, either side is right.
    if (wanted == kept(logits, temperature, top_k, min(top_p + 1e-5, 1))).all() and (
        wanted == kept(logits, temperature, top_k, max(top_p - 1e-5, 0))
    ).all():
        np.testing.assert_array_equal(ours(logits, temperature, top_k, top_p), wanted)


@pytest.mark.parametrize(
    ("top_k", "top_p", "keeps"),
    [(2, 1.0, 4), (4, 1.0, 4), (1, 1.0, 1), (0, 0.9, 1), (0, 0.999, 4), (2, 0.999, 4), (0, 0, 1)],
)
def test_tokens_that_tie_with_the_last_one_are_kept(top_k, top_p, keeps):
    # The first has 0.92 of the probability, the next three 0.025 each.
    assert ours([5.0, *[1.4] * 3, *[-20.0] * 8], 1.0, top_k, top_p).sum() == keeps


def test_zero_of_either_sign_is_one_number():
    assert ours([0.0, -0.0, *[-1.0] * 10], 1.0, 1, 1.0).sum() == 2


def test_filters_equal_the_warpers_of_transformers():
    torch = pytest.importorskip("torch", reason="parity tests need torch: pip install 'iterpref_jax[parity]'")
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    rng = np.random.default_rng(0)
    for temperature, top_k, top_p in [(0.7, 5, 0.8), (1.3, 300, 0.95), (1.0, 50, 0.1), (0.2, 900, 0.999)]:
        logits = (3 * rng.standard_normal((1, 1000))).astype(np.float32)
        scores = torch.tensor(logits)
        for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)):
            scores = warper(None, scores)
        wanted = np.isfinite(scores.numpy())[0]
        np.testing.assert_array_equal(ours(logits[0], temperature, top_k, top_p), wanted)


@pytest.mark.parametrize("settings", [dict(), dict(temperature=0.5, top_k=7, top_p=0.9), dict(top_k=[0, 3] * 2000)])
def test_draws_follow_the_probabilities(settings):
    rows = 4000
    logits = 2 * np.random.default_rng(1).standard_normal(VOCAB)
    token, _ = sample(np.tile(logits, (rows, 1)), np.arange(rows), np.zeros(rows), **settings)
    expected = np.zeros(VOCAB)
    for top_k in np.broadcast_to(settings.get("top_k", 0), rows):
        temperature = settings.get("temperature", 1.0)
        weight = np.where(kept(logits, temperature, top_k, settings.get("top_p", 1.0)), np.exp(logits / temperature), 0)
        expected += weight / weight.sum()
    counts = np.bincount(token, minlength=VOCAB)
    assert not counts[expected == 0].any()
    # Pearson's statistic of 11 or fewer degrees of freedom is above 31.3 once in a thousand times.
    drawn = expected > 0
    assert ((counts - expected)[drawn] ** 2 / expected[drawn]).sum() < 31.3


def test_the_highest_noise_is_as_fine_and_as_high_as_it_should():
    # It decides how often improbable tokens are drawn. That of jax.random.gumbel takes 25 values up here.
    keys = sampling.draw_keys(jnp.arange(100, dtype=jnp.uint32), jnp.zeros(100, jnp.int32))
    noise = np.asarray(sampling._gumbel(keys, 100_000)).ravel()
    assert np.isfinite(noise).all()
    highest = np.sort(np.partition(noise, -30)[-30:])[::-1]
    assert len(set(highest.tolist())) == 30
    # The r-th highest of n draws lies near log(n / r), about 1 / sqrt(r) off.
    for rank in (5, 15, 30):
        assert abs(highest[rank - 1] - np.log(noise.size / rank)) < 3 / np.sqrt(rank)


def test_temperature_0_takes_the_first_of_the_most_probable_tokens():
    logits = np.zeros((2, VOCAB))
    logits[0, [3, 7]] = 5.0
    token, _ = sample(logits, [1, 1], [0, 0], temperature=0.0, top_k=1, top_p=0.1)
    assert token.tolist() == [3, 0]


def test_greedy_and_random_rows_share_a_batch():
    logits = np.random.default_rng(0).standard_normal((4, VOCAB))
    together, _ = sample(logits, [5] * 4, [2] * 4, temperature=[0, 1, 0, 1], top_k=[0, 4, 1, 0], top_p=[1, 1, 0.2, 0.5])
    for row, settings in enumerate([(0, 0, 1), (1, 4, 1), (0, 1, 0.2), (1, 0, 0.5)]):
        alone, _ = sample(logits[[row]], [5], [2], *settings)
        assert together[row] == alone[0]


def test_log_probs_are_the_models_own():
    logits = 3 * np.random.default_rng(0).standard_normal((50, VOCAB)).astype(np.float32)
    token, logp = sample(logits, np.arange(50), np.zeros(50), temperature=0.4, top_k=3, top_p=0.7)
    expected = jax.nn.log_softmax(logits)[np.arange(50), token]
    np.testing.assert_allclose(logp, expected, atol=1e-6)


def test_a_draw_depends_on_seed_and_position_only():
    logits = np.zeros((1, 1000))
    draw = lambda seed, position: int(sample(logits, [seed], [position])[0][0])  # noqa: E731
    tokens = {(seed, position): draw(seed, position) for seed in (0, 1, 2**32 - 1) for position in (0, 1, 2)}
    assert len(set(tokens.values())) == len(tokens)
    order = sorted(tokens)
    batch, _ = sample(np.zeros((9, 1000)), *zip(*order, strict=True))
    assert batch.tolist() == [tokens[each] for each in order]


def test_the_lowest_temperatures_stay_finite():
    logits = 40 * np.random.default_rng(0).standard_normal((3, VOCAB))
    token, logp = sample(logits, [0, 1, 2], [0, 0, 0], temperature=[1e-5, 1e-12, 1e-30], top_p=0.9)
    np.testing.assert_array_equal(token, logits.argmax(1))
    assert np.isfinite(logp).all()

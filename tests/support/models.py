"""A tiny decoder, rows of random pairs, and the loss over them, for the acceptance tests."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from iterpref_jax.data.batch import empty_batch
from iterpref_jax.data.layout import RowSettings, Weighting, costs, lay_out, place
from iterpref_jax.data.packing import best_fit, resolve_caps
from iterpref_jax.models.decoder import Compute, Decoder
from iterpref_jax.models.hf_config import from_hf
from iterpref_jax.models.transformer import init_params
from iterpref_jax.objectives.links import LinkSettings
from iterpref_jax.objectives.preference import ObjectiveSettings, normalisers
from iterpref_jax.train import step as train_step
from iterpref_jax.train.gradients import microbatch, used
from tests.support.examples import index_of

COMPUTE = Compute(compute_dtype="float32", remat="full", attention="xla", logits_mb=0)


def model_config(**fields):
    """A ModelConfig from keys of config.json."""
    defaults = dict(
        model_type="qwen2", vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, rope_theta=1e4, initializer_range=0.3,
        tie_word_embeddings=False,
    )  # fmt: skip
    return from_hf(defaults | fields)


@functools.cache
def tiny(seed=0, **fields):
    config = model_config(**fields)
    return Decoder(config, COMPUTE), init_params(config, seed, "float32")


# Equal shapes for all layouts and recipes: one compilation an objective instead of one a case.
TARGETS, TERMS, PAIRS, MICROBATCHES = 160, 320, 6, 9


def row_settings(layout="shared", truncate=True, tokens=160, rows_per_microbatch=1):
    return RowSettings(
        layout=layout,
        truncate=truncate,
        tokens=tokens,
        lengths=0,
        targets=TARGETS,
        pairs=PAIRS,
        rows_per_microbatch=rows_per_microbatch,
    )


def objective_settings(recipe="target_rpo", nll_norm="example", alpha=None, router_aux_loss_coef=0.0, **link):
    zero = dict(label_smoothing=0.0, simpo_gamma=0.0, dpop_lambda=0.0, discopop_tau=0.0)
    link = LinkSettings(**({"name": "sigmoid", "beta": 0.1} | zero | link))
    alpha = (0.7 if recipe in NLL_RECIPES else 0.0) if alpha is None else alpha
    return ObjectiveSettings(
        recipe=recipe, link=link, alpha=alpha, nll_norm=nll_norm, router_aux_loss_coef=router_aux_loss_coef
    )


NLL_RECIPES = ("sft", "rpo", "target_rpo", "diff_augment", "hybrid", "symmetric_rpo", "prefix_suffix", "token_focus")


def weighting(objective, seed=3):
    return Weighting(recipe=objective.weights, seed=seed, nll_norm=objective.nll_norm)


def make_batch(examples, rows, objective, order=None, reference=None):
    """Packs the examples into one batch [A, R, ...]; returns it and the trees of every row.

    `reference` holds the log-probs of every record's terms.
    """
    cost = costs(index_of(examples), rows, weighting(objective))
    caps = dataclasses.replace(resolve_caps(cost, rows), terms=TERMS)
    order = np.arange(len(examples)) if order is None else np.asarray(order)
    packed = best_fit(order, cost, caps)
    micro = rows.rows_per_microbatch
    assert math.ceil(len(packed) / micro) <= MICROBATCHES
    batch = empty_batch((MICROBATCHES, micro), **dataclasses.asdict(caps))
    for number, trees in enumerate(packed):
        laid = [lay_out([examples[record] for record in tree], tree, rows, weighting(objective)) for tree in trees]
        refs = [None if reference is None else np.concatenate([reference[record] for record in tree]) for tree in trees]
        place(batch, divmod(number, micro), laid, refs)
    return batch, packed


def accumulated(compute, batch):
    """The sum of `compute(microbatch)` over the microbatches that hold pairs: the plain form of the train step's."""
    shapes = jax.eval_shape(compute, jax.eval_shape(lambda b: microbatch(b, 0), batch))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, jnp.float32), shapes)

    def add(number, total):
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, compute(microbatch(batch, number)))

    return jax.lax.fori_loop(0, used(batch), add, zeros)


@functools.cache
def _loss_and_grads(decoder, objective):
    grad = jax.value_and_grad(train_step.make_loss(decoder, objective), has_aux=True)

    @jax.jit
    def run(params, batch):
        norms = normalisers(objective, batch.pair_weight_RP, batch.nll_weight_RE)
        return accumulated(lambda micro: grad(params, micro, norms), batch)

    return run


def loss_and_grads(decoder, params, batch, objective):
    """The whole batch's loss, metrics and gradients, summed over its microbatches."""
    (loss, metrics), grads = _loss_and_grads(decoder, objective)(params, batch)
    return loss, metrics, grads


@functools.cache
def _score(decoder):
    return jax.jit(train_step.make_score_step(decoder))


def per_pair_logps(decoder, params, examples, rows, objective, order=None):
    """The log-probs of every record's terms, through the packed rows: a list of arrays in record order."""
    batch, packed = make_batch(examples, rows, objective, order)
    logps, sizes = (
        np.asarray(_score(decoder)(params, batch)),
        costs(index_of(examples), rows, weighting(objective)).terms,
    )
    found = {}
    for number, trees in enumerate(packed):
        row, records = divmod(number, rows.rows_per_microbatch), [record for tree in trees for record in tree]
        parts = np.split(logps[row][batch.term_RE[row]], np.cumsum(sizes[records]))
        found |= dict(zip(records, parts, strict=False))
    return [found[record] for record in sorted(found)]

"""Every family against `transformers` in training: log-probs and gradients of packed rows against plain sequences."""

import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity tests need torch: pip install 'iterpref_jax[parity]'")

from iterpref_jax.data.batch import empty_batch  # noqa: E402
from iterpref_jax.data.layout import LAYOUTS, RowSettings, costs, lay_out, place  # noqa: E402
from iterpref_jax.data.packing import best_fit, resolve_caps  # noqa: E402
from iterpref_jax.data.schema import common_prefix  # noqa: E402
from iterpref_jax.objectives.preference import loss_and_metrics, normalisers  # noqa: E402
from iterpref_jax.train.step import target_logps  # noqa: E402
from tests.support import models  # noqa: E402
from tests.support.examples import index_of, random_examples, random_group  # noqa: E402
from tests.support.model_configs import SHAPE, VARIANTS  # noqa: E402
from tests.support.torch_models import by_hf_name, gradients_by_hf_name, ours, torch_model  # noqa: E402

SEED = 1
BETA, ALPHA = 0.1, 0.7
EXAMPLES = [
    *random_examples(5, seed=9, vocab=SHAPE["vocab_size"], longest=20),
    *random_group(np.random.default_rng(9), 3, vocab=SHAPE["vocab_size"], longest=12),
]
OBJECTIVE = models.objective_settings("target_rpo", beta=BETA, alpha=ALPHA)
WEIGHTING = models.weighting(OBJECTIVE)
# One shape for all layouts: rows to spare, and columns and targets to spare in every row.
ROWS, TOKENS, TARGETS, TERMS, PAIRS = 8, 96, 100, 160, 3
# Compiling their gradients takes a while, and what sets them apart has no gradient: rope, which layers slide.
SLOW = (
    "llama", "qwen2", "llama_linear", "llama_llama3", "llama_yarn", "llama_yarn_factor", "llama_yarn_old_context",
    "mistral_linear", "qwen2_yarn", "qwen2_layer_types", "qwen3_layer_types", "gemma_linear", "gemma3_layer_types",
    "gemma3_rope_parameters",
)  # fmt: skip
MARKED = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in VARIANTS]
BOUND = 1e-4
# Gradients below this are sums of larger terms that cancel.
NOTHING = 1e-2


def reference_logps(record, side):
    """Reference log-probs are data: any numbers will do, if equal beginnings have the same."""
    example = EXAMPLES[record]
    ids = np.concatenate([example.prompt_ids, (example.chosen_ids, example.rejected_ids)[side]])
    return np.float32(
        [np.sin(ids[: end + 1] @ np.arange(1, end + 2)) - 3 for end in range(len(example.prompt_ids), len(ids))]
    )


def masks(record):
    """Target-RPO's weighted tokens: all of y+, the focus of y-."""
    example = EXAMPLES[record]
    return np.ones(len(example.chosen_ids), bool), example.rejected_focus != 0


@functools.cache
def packed(layout):
    """The rows [R, ...] of all examples, and which of them every row holds."""
    rows = RowSettings(
        layout=layout,
        truncate=True,
        tokens=TOKENS,
        lengths=0,
        targets=TARGETS,
        pairs=PAIRS,
        rows_per_microbatch=ROWS,
    )
    cost = costs(index_of(EXAMPLES), rows, WEIGHTING)
    held = best_fit(np.arange(len(EXAMPLES)), cost, resolve_caps(cost, rows))
    assert 1 < len(held) < ROWS, "some rows are packed and some are padding"
    batch = empty_batch((ROWS,), tokens=TOKENS, targets=TARGETS, terms=TERMS, pairs=PAIRS)
    for row, trees in enumerate(held):
        laid = [lay_out([EXAMPLES[record] for record in tree], tree, rows, WEIGHTING) for tree in trees]
        refs = [np.concatenate([kept for record in tree for kept in kept_references(record)]) for tree in trees]
        place(batch, (row,), laid, refs)
    return batch, [[record for tree in trees for record in tree] for trees in held]


def kept_references(record):
    return [reference_logps(record, side)[mask] for side, mask in enumerate(masks(record))]


@functools.cache
def expected(name):
    """Torch's log-probs of every record's weighted tokens, the loss, and the gradients by checkpoint name."""
    model = torch_model(name, SEED)
    logps = [
        [logps[mask] for logps, mask in zip(both, masks(record), strict=True)] for record, both in sequences(model)
    ]
    preference, nll = [], []
    for record, (chosen, rejected) in enumerate(logps):
        references = [torch.tensor(reference) for reference in kept_references(record)]
        margin = (chosen - references[0]).sum() - (rejected - references[1]).sum()
        preference.append(-torch.nn.functional.logsigmoid(BETA * margin))
        nll.append(-chosen.mean())
    loss = torch.stack(preference).mean() + ALPHA * torch.stack(nll).mean()
    loss.backward()
    kept = [torch.cat(both).detach().numpy() for both in logps]
    return kept, loss.item(), gradients_by_hf_name(model)


def sequences(model):
    """Yields every record and the log-probs of its two completions, each from its own sequence, padded on the right."""
    texts = [
        np.concatenate([example.prompt_ids, ids])
        for example in EXAMPLES
        for ids in (example.chosen_ids, example.rejected_ids)
    ]
    tokens = torch.zeros((len(texts), max(map(len, texts))), dtype=torch.long)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    logps = torch.log_softmax(model(tokens, use_cache=False).logits[:, :-1], -1)
    logps = logps.gather(2, tokens[:, 1:, None])[..., 0]
    for record, example in enumerate(EXAMPLES):
        start = len(example.prompt_ids) - 1
        yield record, [logps[2 * record + side, start : len(texts[2 * record + side]) - 1] for side in (0, 1)]


@functools.cache
def program(name):
    """Loss, log-probs and gradients of one microbatch, compiled once for both layouts."""
    decoder, _ = ours(name, SEED)

    def loss(params, micro):
        logp_RG = target_logps(decoder, params, micro)
        norms = normalisers(OBJECTIVE, micro.pair_weight_RP, micro.nll_weight_RE)
        return loss_and_metrics(OBJECTIVE, logp_RG, micro, 2 * PAIRS, norms)[0], logp_RG

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def got(name, layout):
    decoder, params = ours(name, SEED)
    batch, held = packed(layout)
    (loss, logps), gradients = program(name)(params, batch)
    found = {}
    for row, records in enumerate(held):
        sizes = [sum(mask.sum() for mask in masks(record)) for record in records]
        parts = np.split(np.asarray(logps[row])[batch.term_RE[row]], np.cumsum(sizes))
        found |= dict(zip(records, parts, strict=False))
    return [found[record] for record in range(len(EXAMPLES))], float(loss), by_hf_name(decoder, gradients)


def test_a_window_that_counted_columns_would_see_other_tokens():
    """Some rejected tail follows a chosen one, and a trunk, both longer than every window."""
    widest = max(variant.config.get("sliding_window") or 0 for variant in VARIANTS.values())
    commons = [common_prefix(example.chosen_ids, example.rejected_ids) for example in EXAMPLES]
    trunks = [len(example.prompt_ids) + common for example, common in zip(EXAMPLES, commons, strict=True)]
    tails = [len(example.chosen_ids) - common for example, common in zip(EXAMPLES, commons, strict=True)]
    assert any(min(trunk, tail) > widest for trunk, tail in zip(trunks, tails, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MARKED)
def test_log_probs_of_packed_rows_equal_those_of_plain_sequences_in_torch(name, layout):
    wanted, wanted_loss, _ = expected(name)
    logps, loss, _ = got(name, layout)
    for record, (have, want) in enumerate(zip(logps, wanted, strict=True)):
        np.testing.assert_allclose(have, want, rtol=0, atol=BOUND, err_msg=f"record {record}")
    np.testing.assert_allclose(loss, wanted_loss, rtol=BOUND)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MARKED)
def test_every_gradient_of_target_rpo_equals_torchs(name, layout):
    wanted, gradients = expected(name)[2], got(name, layout)[2]
    assert gradients.keys() == wanted.keys()
    for key, theirs in wanted.items():
        scale = np.abs(theirs).max()
        error = np.abs(gradients[key] - theirs).max()
        assert error <= BOUND * min(1.0, max(scale, NOTHING)), f"{key}: {error:.1e} of {scale:.1e}"


@pytest.mark.parametrize("name", VARIANTS)
def test_every_weight_gets_a_gradient_in_torch(name):
    """Else the comparison above would compare nothing with nothing; only an expert may be chosen by no token."""
    still = [key for key, gradient in expected(name)[2].items() if np.abs(gradient).max() < NOTHING * BOUND]
    assert not [key for key in still if ".experts." not in key]
    assert len(still) < len([key for key in expected(name)[2] if ".experts." in key]) / 2 or not still

"""The whole objective against a dense PyTorch one: two plain sequences a pair, full logits, weights as defined."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="parity tests need torch: pip install 'iterpref_jax[parity]'")

from iterpref_jax.objectives.preference import NLL_NORMS  # noqa: E402
from iterpref_jax.objectives.weights import RECIPES  # noqa: E402
from iterpref_jax.train.optimizer import Optimizer  # noqa: E402
from iterpref_jax.train.step import init_state, make_train_step  # noqa: E402
from tests.support import models  # noqa: E402
from tests.support.examples import random_examples  # noqa: E402
from tests.support.torch_models import by_hf_name, ours, torch_model  # noqa: E402

EXAMPLES = random_examples(6, seed=4)
POLICY, REFERENCE = 1, 2  # seeds of the checkpoints
COIN_SEED, BETA, ALPHA = 3, 0.1, 0.7

# method.md's table, written out: what is weighted on y+ and on y-, and whether alpha * NLL(y+) is added.
DEFINITIONS = {
    "sft": (None, None, True),
    "dpo": ("all", "all", False),
    "rpo": ("all", "all", True),
    "target_dpo": ("all", "focus", False),
    "target_rpo": ("all", "focus", True),
    "diff_augment": ("all", "focus", True),
    "hybrid": ("all", "coin", True),
    "symmetric": ("focus", "focus", False),
    "symmetric_rpo": ("focus", "focus", True),
    "prefix_suffix": ("all", "focus", True),
    "token_focus": ("all", "focus", True),
}


def splitmix64(x):
    """Vigna's generator: the state's next value, mixed."""
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def coin(record):
    return splitmix64((record + splitmix64(COIN_SEED)) % 2**64) >= 2**63


def token_logps(model, prompt, completion):
    tokens = torch.tensor(np.concatenate([prompt, completion]), dtype=torch.long)[None]
    logp = torch.log_softmax(model(tokens).logits[0, :-1], -1)
    return logp.gather(1, tokens[0, 1:, None])[len(prompt) - 1 :, 0]


def weights(selection, focus, record):
    if selection == "coin":
        selection = "all" if coin(record) else "focus"
    return torch.ones(len(focus)) if selection == "all" else torch.tensor(focus, dtype=torch.float32)


def torch_loss(policy, reference, recipe, nll_norm):
    chosen, rejected, nll = DEFINITIONS[recipe]
    preference, nlls = [], []
    for record, example in enumerate(EXAMPLES):
        scores = {}
        for side, selection in (("chosen", chosen), ("rejected", rejected)):
            ids, focus = getattr(example, f"{side}_ids"), getattr(example, f"{side}_focus")
            logps = token_logps(policy, example.prompt_ids, ids)
            with torch.no_grad():
                ref_logps = token_logps(reference, example.prompt_ids, ids)
            if side == "chosen":
                nlls.append(-logps)
            if selection:
                scores[side] = (weights(selection, focus, record) * (logps - ref_logps)).sum()
        if scores:
            preference.append(-torch.nn.functional.logsigmoid(BETA * (scores["chosen"] - scores["rejected"])))
    loss = torch.stack(preference).mean() if preference else torch.zeros(())
    if not nll:
        return loss
    normalised = {
        "example": lambda: torch.stack([each.mean() for each in nlls]).mean(),
        "token": lambda: torch.cat(nlls).mean(),
        "sum": lambda: torch.stack([each.sum() for each in nlls]).mean(),
    }
    return loss + ALPHA * normalised[nll_norm]()


@functools.cache
def expected(family, recipe, nll_norm):
    policy, reference = torch_model(family, POLICY), torch_model(family, REFERENCE)
    loss = torch_loss(policy, reference, recipe, nll_norm)
    loss.backward()
    return loss.item(), {name: parameter.grad.numpy() for name, parameter in policy.named_parameters()}


def keep_gradients():
    """An optimizer that changes nothing and whose state is the last gradient."""
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    rule = optax.GradientTransformation(zeros, lambda gradients, state, params=None: (zeros(gradients), gradients))
    return Optimizer(rule)


STEPS, PROGRAMS = {}, {}


def train_step(decoder, objective, params, batch):
    """The real step, compiled once a program: recipes are data, so most of them lower to the same one."""
    if (decoder, objective) not in STEPS:
        optimizer = keep_gradients()
        step = make_train_step(decoder, objective, optimizer, optax.constant_schedule(0.0))
        lowered = jax.jit(lambda params, batch: step(init_state(optimizer, params), batch)).lower(params, batch)
        text = lowered.as_text()
        if text not in PROGRAMS:
            PROGRAMS[text] = lowered.compile()
        STEPS[decoder, objective] = PROGRAMS[text]
    return STEPS[decoder, objective](params, batch)


def our_loss_and_gradients(family, recipe, nll_norm, layout):
    objective = models.objective_settings(recipe, nll_norm=nll_norm, beta=BETA)
    assert models.weighting(objective).seed == COIN_SEED
    rows = models.row_settings(layout, truncate=True)
    (decoder, params), (scorer, reference) = ours(family, POLICY), ours(family, REFERENCE)
    ref_logps = models.per_pair_logps(scorer, reference, EXAMPLES, rows, objective)
    batch, _ = models.make_batch(EXAMPLES, rows, objective, reference=ref_logps)
    state, metrics = train_step(decoder, objective, params, batch)
    return float(metrics["loss"]), by_hf_name(decoder, state.opt_state)


def assert_equal_to_torch(family, recipe, nll_norm, layout):
    wanted_loss, wanted = expected(family, recipe, nll_norm)
    loss, gradients = our_loss_and_gradients(family, recipe, nll_norm, layout)
    np.testing.assert_allclose(loss, wanted_loss, rtol=2e-6)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        # Absolute where terms of the size of the largest cancel: float32 carries 7 digits of them.
        np.testing.assert_allclose(
            gradients[name], gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max(), err_msg=name
        )


def test_every_recipe_is_defined_here():
    assert DEFINITIONS.keys() == RECIPES.keys()
    assert len({coin(record) for record in range(len(EXAMPLES))}) == 2, "hybrid must draw both kinds"


@pytest.mark.parametrize("layout", ["separate", "shared"])
@pytest.mark.parametrize("recipe", DEFINITIONS)
@pytest.mark.parametrize("family", [pytest.param("llama", marks=pytest.mark.slow), "qwen2"])
def test_loss_and_every_gradient_equal_a_dense_torch_objective(family, recipe, layout):
    assert_equal_to_torch(family, recipe, "example", layout)


@pytest.mark.parametrize("nll_norm", NLL_NORMS)
def test_every_nll_normaliser_equals_the_torch_objective(nll_norm):
    assert_equal_to_torch("qwen2", "target_rpo", nll_norm, "shared")

"""Losses and gradients against TRL's own trainers, on the token ids that TRL's tokenisation and collator made.

Where TRL 1.16 differs from us, and which test shows it:
- `sigmoid` and `sigmoid_norm` ignore `label_smoothing` there; here they apply it (cDPO).
- Other links ignore it as well; here a number that a link does not read is an error (`links_test`).
- `sft` (the NLL of `rpo`) is a mean over the tokens of one device's microbatch: our "token" on one batch, our "example"
  at a batch of one pair. Over several microbatches or devices it is a mean of means; our denominators are global.
- ORPO's NLL covers the prompt as well; ours covers y+ alone, so the odds-ratio term is compared by itself.
- `ipo` and `sigmoid_norm` divide by all completion tokens, the first one included even where no prompt comes before it
  and it is not scored. With a prompt, as here, that is our weight sum.
TRL has no `dpop`; `links_test` computes it by hand.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

INSTALL = "parity tests need torch and trl: pip install 'iterpref_jax[parity]'"
torch = pytest.importorskip("torch", reason=INSTALL)
trl = pytest.importorskip("trl", reason=INSTALL)

import datasets  # noqa: E402
import tokenizers  # noqa: E402
import transformers  # noqa: E402

from iterpref_jax.data.schema import Example  # noqa: E402
from iterpref_jax.objectives.links import LINKS  # noqa: E402
from iterpref_jax.objectives.preference import loss_and_metrics, normalisers  # noqa: E402
from iterpref_jax.train.step import target_logps  # noqa: E402
from tests.support import models  # noqa: E402
from tests.support.model_configs import SHAPE  # noqa: E402
from tests.support.torch_models import by_hf_name, ours, torch_model  # noqa: E402

FAMILY, POLICY, REFERENCE = "qwen2", 1, 2
BETA, ALPHA = 0.3, 0.7
PAD, EOS = SHAPE["vocab_size"] - 2, SHAPE["vocab_size"] - 1

# Link -> what TRL and we need besides beta.
DPO_LINKS = {
    "sigmoid": {},
    "hinge": {},
    "ipo": {},
    "exo_pair": {"label_smoothing": 0.1},
    "nca_pair": {},
    "robust": {"label_smoothing": 0.1},
    "bco_pair": {},
    "sppo_hard": {},
    "apo_zero": {},
    "apo_down": {},
    # TRL's default of 0.05 makes the gradient so steep in the log-ratios that their float32 rounding shows.
    "discopop": {"discopop_tau": 0.5},
    "sigmoid_norm": {},
}


@functools.cache
def pairs():
    """Four pairs of words `w<id>`; id 0 is a real token, prompts and completions differ in length."""
    rng = np.random.default_rng(0)

    def words(low, high):
        return [f"w{token}" for token in rng.integers(0, PAD, rng.integers(low, high))]

    found = []
    for _ in range(4):
        common = ["w0", *words(1, 5)]
        sides = (" ".join(common + words(2, 12)) for _ in range(2))
        found.append({"prompt": " ".join(words(2, 9)) + " ", **dict(zip(("chosen", "rejected"), sides, strict=True))})
    return found


def swapped():
    return [{"prompt": p["prompt"], "chosen": p["rejected"], "rejected": p["chosen"]} for p in pairs()]


@functools.cache
def tokenizer():
    vocabulary = {f"w{token}": token for token in range(PAD)} | {"<pad>": PAD, "<eos>": EOS}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def make_trainer(trainer, config, folder, rows, **fields):
    """A real trainer of a fresh policy, and its one batch of all pairs."""
    args = config(
        output_dir=str(folder),
        beta=BETA,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=len(rows),
        **fields,
    )
    reference = {"ref_model": torch_model(FAMILY, REFERENCE)} if trainer is trl.DPOTrainer else {}
    made = trainer(
        model=torch_model(FAMILY, POLICY),
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(),
        **reference,
    )
    (batch,) = made.get_train_dataloader()
    return made, batch


def gradients(trainer, loss):
    loss.backward()
    return {name: parameter.grad.numpy() for name, parameter in trainer.model.named_parameters()}


def dpo(folder, loss_type, rows=None, **fields):
    """TRL's DPO loss, its gradients, and the pairs of its batch as our examples."""
    rows = pairs() if rows is None else rows
    trainer, batch = make_trainer(trl.DPOTrainer, trl.DPOConfig, folder, rows, loss_type=loss_type, **fields)
    loss = trainer.compute_loss(trainer.model, batch)
    parts = [batch[name].numpy() for name in ("input_ids", "attention_mask", "completion_mask")]
    sequences = list(zip(*parts, strict=True))
    found = [example(*both) for both in zip(sequences[: len(rows)], sequences[len(rows) :], strict=True)]
    return loss.item(), gradients(trainer, loss), found


def example(chosen, rejected):
    """One pair of TRL's padded rows (ids, attention, completion) without padding."""
    (prompt, chosen_ids), (again, rejected_ids) = (
        (ids[(attended == 1) & (completion == 0)], ids[(attended == 1) & (completion == 1)])
        for ids, attended, completion in (chosen, rejected)
    )
    np.testing.assert_array_equal(prompt, again)
    focus = [np.zeros(len(ids), np.uint8) for ids in (chosen_ids, rejected_ids)]
    return Example("pair", "task", *(ids.astype(np.int32) for ids in (prompt, chosen_ids, rejected_ids)), *focus)


@functools.cache
def scorer():
    """One compiled function for all links: (params, rows, d loss / d log-probs) -> (log-probs, d loss / d params)."""
    decoder, _ = ours(FAMILY, POLICY)

    @jax.jit
    def run(params, rows, cotangent):
        logps, pull = jax.vjp(lambda params: target_logps(decoder, params, rows), params)
        return logps, pull(cotangent)[0]

    return run


def our_loss(examples, **objective):
    """Our loss, its gradients by `transformers` name, and the metrics; the reference as a cache would hold it."""
    objective = models.objective_settings(**({"recipe": "dpo", "beta": BETA} | objective))
    (decoder, params), (_, reference) = ours(FAMILY, POLICY), ours(FAMILY, REFERENCE)
    batch, _ = models.make_batch(examples, models.row_settings(tokens=256, rows_per_microbatch=2), objective)
    rows = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
    assert rows.pair_weight_RP.sum() == len(examples), "all pairs lie in the first microbatch"
    nothing = jnp.zeros(rows.target_RG.shape)
    rows = rows._replace(ref_logp_RG=scorer()(reference, rows, nothing)[0])
    norms = normalisers(objective, rows.pair_weight_RP, rows.nll_weight_RE)

    def loss(logps):
        return loss_and_metrics(objective, logps, rows, 2 * rows.pair_weight_RP.shape[-1], norms)

    logps, _ = scorer()(params, rows, nothing)
    (value, metrics), cotangent = jax.jit(jax.value_and_grad(loss, has_aux=True))(logps)
    return float(value), by_hf_name(decoder, scorer()(params, rows, cotangent)[1]), metrics


def assert_equal(got, wanted):
    np.testing.assert_allclose(got[0], wanted[0], rtol=5e-6)
    assert got[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        # Absolute where terms of the size of the largest cancel: float32 carries 7 digits of them.
        scale = np.abs(gradient).max()
        assert scale > 0, f"{name}: equal to TRL means nothing where the loss is flat"
        np.testing.assert_allclose(got[1][name], gradient, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def mixture(first, second, share):
    """(loss, gradients) of the weighted mean of two losses."""
    both = {name: (1 - share) * first[1][name] + share * second[1][name] for name in first[1]}
    return (1 - share) * first[0] + share * second[0], both


def test_the_token_ids_are_those_of_the_words(tmp_path):
    _, _, examples = dpo(tmp_path, ["sigmoid"])
    got = {(tuple(e.prompt_ids), tuple(e.chosen_ids), tuple(e.rejected_ids)) for e in examples}

    def ids(text):
        return tuple(int(word[1:]) for word in text.split())

    assert got == {(ids(p["prompt"]), (*ids(p["chosen"]), EOS), (*ids(p["rejected"]), EOS)) for p in pairs()}
    assert any(0 in e.chosen_ids for e in examples), "a real token with id 0 must be scored"


def test_every_link_is_compared_with_trl_or_known_to_be_missing_there():
    assert LINKS.keys() == {*DPO_LINKS, "cpo", "simpo", "orpo", "dpop"}


@pytest.mark.parametrize("link", DPO_LINKS)
def test_link_and_its_gradients_equal_trl(link, tmp_path):
    *theirs, examples = dpo(tmp_path, [link], **DPO_LINKS[link])
    assert_equal(our_loss(examples, name=link, **DPO_LINKS[link]), theirs)


@pytest.mark.parametrize("link", ["sigmoid", "sigmoid_norm"])
def test_label_smoothing_that_trl_ignores_is_the_mixture_of_both_orders(link, tmp_path):
    *theirs, examples = dpo(tmp_path, [link], label_smoothing=0.2)
    *plain, _ = dpo(tmp_path, [link])
    assert theirs[0] == plain[0], "TRL reads label_smoothing now: compare directly"
    *flipped, _ = dpo(tmp_path, [link], rows=swapped())
    assert_equal(our_loss(examples, name=link, label_smoothing=0.2), mixture(plain, flipped, 0.2))


def test_rpo_with_token_norm_equals_trl_sigmoid_plus_sft(tmp_path):
    *theirs, examples = dpo(tmp_path, ["sigmoid", "sft"], loss_weights=[1.0, ALPHA])
    assert_equal(our_loss(examples, recipe="rpo", nll_norm="token", alpha=ALPHA), theirs)


def test_rpo_with_example_norm_equals_trl_at_a_batch_of_one_pair(tmp_path):
    losses, summed, examples = [], {}, []
    for row in pairs():
        loss, gradient, (one,) = dpo(tmp_path, ["sigmoid", "sft"], rows=[row], loss_weights=[1.0, ALPHA])
        losses.append(loss)
        examples.append(one)
        summed = {name: summed.get(name, 0) + value / len(pairs()) for name, value in gradient.items()}
    got = our_loss(examples, recipe="rpo", nll_norm="example", alpha=ALPHA)
    assert_equal(got, (np.mean(losses), summed))
    assert abs(got[0] - our_loss(examples, recipe="rpo", nll_norm="token", alpha=ALPHA)[0]) > 1e-3


def experimental(name):
    pytest.importorskip(f"trl.experimental.{name}", reason="this TRL has no such trainer")
    module = __import__(f"trl.experimental.{name}", fromlist=["trainer"])
    return getattr(module, f"{name.upper()}Trainer"), getattr(module, f"{name.upper()}Config")


def cpo_examples(batch):
    sequences = []
    for side in ("chosen", "rejected"):
        ids, attended, labels = (batch[f"{side}_{part}"].numpy() for part in ("input_ids", "attention_mask", "labels"))
        sequences.append(list(zip(ids, attended, (labels != -100).astype(int), strict=True)))
    return [example(*both) for both in zip(*sequences, strict=True)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("alpha", [0.0, ALPHA])
@pytest.mark.parametrize(
    ("link", "loss_type", "numbers"),
    [
        ("cpo", "sigmoid", {"label_smoothing": 0.1}),
        ("simpo", "simpo", {"label_smoothing": 0.1, "simpo_gamma": 0.5}),
    ],
)
def test_cpo_and_simpo_with_and_without_nll_equal_trl(link, loss_type, numbers, alpha, tmp_path):
    fields = {"loss_type": loss_type, "cpo_alpha": alpha, "remove_unused_columns": False, **numbers}
    trainer, batch = make_trainer(*experimental("cpo"), tmp_path, pairs(), **fields)
    loss = trainer.compute_loss(trainer.model, batch)
    recipe = {"recipe": "rpo", "nll_norm": "token"} if alpha else {"recipe": "dpo"}
    got = our_loss(cpo_examples(batch), name=link, alpha=alpha, **recipe, **numbers)
    assert_equal(got, (loss.item(), gradients(trainer, loss)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_odds_ratio_term_equals_trl_orpo(tmp_path):
    trainer, batch = make_trainer(*experimental("orpo"), tmp_path, pairs(), remove_unused_columns=False)
    chosen, rejected = trainer.concatenated_forward(trainer.model, batch)[:2]
    loss = -trainer.odds_ratio_loss(chosen, rejected)[0].mean()
    assert_equal(our_loss(cpo_examples(batch), name="orpo"), (loss.item(), gradients(trainer, loss)))

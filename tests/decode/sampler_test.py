"""The sampler: a completion depends on its request alone, and ends where it should."""

import dataclasses
import functools
import gc
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.decode import loop
from iterpref_jax.decode.request import Request, join
from iterpref_jax.decode.sampler import Sampler, SamplerSettings
from iterpref_jax.errors import UserError
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.cache import CachedDecoder
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.transformer import init_params, param_shardings
from tests.data import tiny
from tests.support import models
from tests.support.meshes import placed

VOCAB, CONTEXT = 340, 64
TOKENIZER = tiny.byte_level()
# Many, so that random weights meet one now and then.
EOS = (TOKENIZER.eos_token_id, *range(20, 27))


def settings(**changes):
    return SamplerSettings(**dict(slots=4, context=CONTEXT, chunk=5, prefill_tokens=64) | changes)


def model():
    return models.tiny(vocab_size=VOCAB, initializer_range=0.2)


def sampler(**changes):
    return Sampler(*model(), TOKENIZER, settings(**changes), eos_ids=EOS)


def bits(tree):
    return [np.asarray(leaf).astype(np.float32) for leaf in jax.tree.leaves(tree)]


def test_weights_that_are_read_in_the_compute_dtype_are_those_that_are_cast_to_it(tmp_path):
    decoder, params = model()
    decoder = dataclasses.replace(decoder, compute=dataclasses.replace(decoder.compute, compute_dtype="bfloat16"))
    hf_checkpoint.save(str(tmp_path), decoder.config, params, dtype="float32", copy_from=None, max_shard_gb=1)
    narrow = hf_checkpoint.load(str(tmp_path), "float32", None, "bfloat16")[1]
    prepared, later = (CachedDecoder(decoder).prepare(each) for each in (narrow, params))
    assert [leaf.dtype for leaf in jax.tree.leaves(prepared)] == [leaf.dtype for leaf in jax.tree.leaves(later)]
    assert all(map(np.array_equal, bits(prepared), bits(later)))


def test_a_sampler_that_is_given_its_weights_holds_them_once():
    decoder = dataclasses.replace(model()[0], compute=dataclasses.replace(model()[0].compute, compute_dtype="bfloat16"))
    before = live_bytes()
    params = init_params(decoder.config, 0, "float32")
    norms = sum(leaf.nbytes for path, leaf in jax.tree.leaves_with_path(params) if "norm" in jax.tree_util.keystr(path))
    kernels = live_bytes() - before - norms
    made = Sampler(decoder, params, TOKENIZER, settings(), eos_ids=EOS, donate=True)
    assert live_bytes() - before == norms + kernels // 2 + sum(leaf.nbytes for leaf in jax.tree.leaves(made._cache))


def live_bytes():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


@functools.cache
def requests():
    """Prompts of 1 to 40 tokens, greedy ones and all kinds of draws, some that end early."""
    rng = np.random.default_rng(0)
    found = []
    for number, length in enumerate([1, 2, 3, 16, 17, 18, 33, 40, 5, 5, 30, 9]):
        found.append(
            Request(
                prompt=rng.integers(0, VOCAB, length).tolist(),
                max_tokens=int(rng.integers(1, CONTEXT - length + 1)),
                temperature=(0.0, 1.0, 0.7)[number % 3],
                top_p=(1.0, 0.9)[number % 2],
                top_k=(0, 40, 0, 5)[number % 4],
                seed=number,
                stop=("a", "e", "i", "1") if number % 5 == 4 else (),
                stop_token_ids=None if number % 2 else (),
            )
        )
    # Three samples of one prompt, and one more prompt that only ends otherwise.
    again = {"max_tokens": 20, "temperature": 1.0}
    found += [Request(prompt=found[6].prompt, seed=seed, **again) for seed in (7, 8, 9)]
    return [*found, Request(prompt=(*found[6].prompt[:-1], 3), seed=7, **again)]


def run(sampler, wanted):
    completions = dict(sampler.generate(wanted))
    return [completions[number] for number in range(len(wanted))]


@functools.cache
def expected():
    return run(sampler(), requests())


def assert_equal(got, wanted):
    for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert one.tokens == other.tokens, number
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


@functools.cache
def training_forward():
    decoder, params = model()
    return jax.jit(lambda *columns: jax.nn.log_softmax(decoder.logits(params, decoder.hidden(params, *columns))))


def training_logps(request, completion):
    """The log-probs of the completion's tokens from the training forward pass over one padded row."""
    written = [*request.prompt, *completion.tokens]
    tokens, column = np.zeros((1, CONTEXT), np.int32), np.arange(CONTEXT)[None]
    tokens[0, : len(written)] = written
    logps = training_forward()(tokens, column, np.where(column < len(written), len(written), 0))[0]
    return logps[np.arange(len(request.prompt), len(written)) - 1, np.array(completion.tokens)]


def test_the_requests_end_in_every_way():
    ends = {(completion.finish_reason, completion.tokens[-1] in EOS) for completion in expected()}
    assert ends == {("stop", False), ("stop", True), ("length", False)}


@pytest.mark.parametrize(
    "changes",
    [
        dict(slots=1),
        dict(slots=7, chunk=1),
        dict(slots=16, chunk=40, prefill_tokens=1),
        dict(slots=3, prefill_tokens=300, context=96),
    ],
)
def test_slots_chunks_and_prefills_change_nothing(changes):
    assert_equal(run(sampler(**changes), requests()), expected())


def test_neighbours_and_order_change_nothing():
    order = list(range(len(requests())))
    random.Random(0).shuffle(order)
    shuffled = run(sampler(), [requests()[number] for number in order])
    assert_equal(shuffled, [expected()[number] for number in order])
    alone = sampler()
    assert_equal([run(alone, [request])[0] for request in requests()], expected())


def test_log_probs_are_those_of_the_training_forward_pass():
    for request, completion in zip(requests(), expected(), strict=True):
        np.testing.assert_allclose(completion.logprobs, training_logps(request, completion), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral_window", "gemma3_pattern", "qwen3_moe_top2"])
def test_greedy_equals_generate_of_transformers(name):
    torch = pytest.importorskip("torch", reason="parity tests need torch: pip install 'iterpref_jax[parity]'")
    from tests.support.torch_models import ours, torch_model

    prompts = [np.random.default_rng(length).integers(0, 97, length).tolist() for length in (1, 7, 20)]
    greedy = [Request(prompt=prompt, max_tokens=24, temperature=0.0, stop_token_ids=()) for prompt in prompts]
    found = run(Sampler(*ours(name, 0), TOKENIZER, settings()), greedy)
    theirs = torch_model(name, 0)
    for prompt, completion in zip(prompts, found, strict=True):
        output = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert list(completion.tokens) == output[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "sizes",
    [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2), pytest.param((1, 1, 8), marks=pytest.mark.slow)],
)
def test_a_mesh_equals_one_device(sizes):
    data, fsdp, tensor = sizes
    decoder, params = model()
    placement = placed(data=data, fsdp=fsdp, tensor=tensor)
    put = jax.device_put(params, param_shardings(decoder.config, "float32", placement))
    sharded = Decoder(decoder.config, decoder.compute, placement)
    assert_equal(run(Sampler(sharded, put, TOKENIZER, settings(slots=8), eos_ids=EOS), requests()), expected())


def test_slots_that_a_mesh_cannot_split_are_refused_by_name():
    decoder, params = model()
    placement = placed(data=2, fsdp=4)
    with pytest.raises(UserError, match=r"decode\.slots is 12, .* multiple of 8"):
        Sampler(Decoder(decoder.config, decoder.compute, placement), params, TOKENIZER, settings(slots=12))


@pytest.mark.slow
def test_experts_over_devices_equal_one_device():
    decoder, params = models.tiny(
        vocab_size=VOCAB, initializer_range=0.2, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=24, norm_topk_prob=True,
    )  # fmt: skip
    alone = run(Sampler(decoder, params, TOKENIZER, settings(slots=8), eos_ids=EOS), requests())
    placement = placed(fsdp=2, expert=4)
    put = jax.device_put(params, param_shardings(decoder.config, "float32", placement))
    sharded = Decoder(decoder.config, decoder.compute, placement)
    assert_equal(run(Sampler(sharded, put, TOKENIZER, settings(slots=8), eos_ids=EOS), requests()), alone)


def test_splitting_the_tokens_of_a_row_is_refused_for_decoding_has_one():
    decoder, params = model()
    with pytest.raises(UserError, match=r"mesh\.sequence is 2, but decoding .* set it to 1"):
        Sampler(Decoder(decoder.config, decoder.compute, placed(sequence=2)), params, TOKENIZER, settings())


def prefilled(monkeypatch):
    """The lengths of all prompts that are computed from now on."""
    lengths = []
    computed = loop.prefill

    def spy(model, params, cache, tokens_RT, length_R, slot_R):
        lengths.extend(length_R[slot_R < 4].tolist())
        return computed(model, params, cache, tokens_RT, length_R, slot_R)

    monkeypatch.setattr(loop, "prefill", spy)
    return lengths


def test_samples_of_one_prompt_compute_it_once(monkeypatch):
    lengths = prefilled(monkeypatch)
    prompt = requests()[6].prompt
    samples = [Request(prompt=prompt, max_tokens=4 + seed, seed=seed, stop_token_ids=()) for seed in range(11)]
    found = run(sampler(), samples)
    assert lengths == [len(prompt) - 1]
    for request, completion in zip(samples, found, strict=True):
        np.testing.assert_allclose(completion.logprobs, training_logps(request, completion), atol=1e-5)


def test_a_slot_that_was_overwritten_is_no_source(monkeypatch):
    lengths = prefilled(monkeypatch)
    one, other = requests()[6].prompt, requests()[7].prompt
    ask = lambda prompt, seed: Request(prompt=prompt, max_tokens=3, seed=seed)  # noqa: E731
    everything = [ask(prompt, seed) for seed in range(4) for prompt in [one] * 4 + [other] * 4]
    alone = sampler()
    found = run(alone, everything)
    for request, completion in zip(everything, found, strict=True):
        np.testing.assert_allclose(completion.logprobs, training_logps(request, completion), atol=1e-5)
    assert sorted(set(lengths)) == [len(one) - 1, len(other) - 1]
    assert len(lengths) > 2, "nothing was overwritten"


def test_requests_of_every_kind_share_one_compiled_loop():
    wanted = sampler(chunk=3)
    run(wanted, requests()[:1])
    before = loop.decode._cache_size()
    run(wanted, requests())
    assert loop.decode._cache_size() == before


def test_pieces_come_as_they_are_drawn_and_join_to_the_completion():
    request = requests()[8]
    wanted = run(sampler(), [request])[0]
    stepwise = sampler(chunk=2)
    request_id = stepwise.submit(request)
    pieces = []
    while stepwise.busy:
        pieces += stepwise.step()
    assert {piece.request_id for piece in pieces} == {request_id}
    assert all(1 <= len(piece.tokens) <= 2 for piece in pieces)
    assert [piece.finish_reason is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert_equal([join(pieces)], [wanted])


def test_the_loop_ends_with_the_last_active_slot():
    long = Request(prompt=[1, 2], max_tokens=9, temperature=0.0, stop_token_ids=())
    tokens = run(sampler(), [long])[0].tokens
    stop = tokens[4]
    short = Request(prompt=[5], max_tokens=3, stop_token_ids=())
    wanted = sampler(chunk=40)
    wanted.submit(Request(prompt=[1, 2], max_tokens=9, temperature=0.0, stop_token_ids=[stop]))
    wanted.submit(short)
    wanted._fill()
    _, chunk = loop.decode(wanted._model, wanted._params, wanted._cache, wanted._rows(), steps=40)
    steps = tokens.index(stop) + 1
    assert sorted(chunk.drawn_B.tolist()) == sorted([steps, 3, 0, 0])
    # Nothing was computed after the last of them.
    assert not np.asarray(chunk.logp_CB)[max(steps, 3) :].any()


def test_cancelled_requests_give_nothing_and_free_their_places():
    wanted = sampler(slots=1)
    longest = Request(prompt=[1, 2, 3], max_tokens=60, stop_token_ids=())
    running, waiting, last = wanted.submit(longest), wanted.submit(longest), wanted.submit(requests()[0])
    assert [piece.request_id for piece in wanted.step()] == [running]
    wanted.cancel(running)
    wanted.cancel(waiting)
    pieces = []
    while wanted.busy:
        pieces += wanted.step()
    assert {piece.request_id for piece in pieces} == {last}
    assert_equal([join(pieces)], [expected()[0]])
    wanted.cancel(last)
    assert wanted.step() == []


def test_a_generator_that_is_left_leaves_nothing_behind():
    wanted = sampler()
    for _ in wanted.generate(requests()):
        break
    assert not wanted.busy
    assert_equal(run(wanted, requests()[:2]), expected()[:2])


def test_generate_refuses_a_busy_sampler():
    wanted = sampler()
    wanted.submit(requests()[0])
    with pytest.raises(ValueError, match="other requests"):
        next(wanted.generate(requests()))


def test_what_does_not_fit_is_refused_with_its_numbers():
    wanted = sampler()
    with pytest.raises(UserError, match=r"prompt has 60 tokens and max_tokens is 5: .* context of 64"):
        wanted.submit(Request(prompt=[1] * 60, max_tokens=5))
    with pytest.raises(UserError, match=r"vocabulary of 340"):
        wanted.submit(Request(prompt=[VOCAB], max_tokens=5))
    with pytest.raises(UserError, match=r"request 1: prompt has 65"):
        next(wanted.generate([requests()[0], Request(prompt=[1] * 65, max_tokens=5)]))
    assert not wanted.busy
    wanted.submit(Request(prompt=[1] * 59, max_tokens=5))


def test_a_tokenizer_without_an_end_needs_one():
    with pytest.raises(UserError, match="eos_ids"):
        Sampler(*model(), tiny.byte_level(eos=None), settings())
    with pytest.raises(UserError, match="1 to 8"):
        Sampler(*model(), TOKENIZER, settings(), eos_ids=range(9))
    Sampler(*model(), tiny.byte_level(eos=None), settings(), eos_ids=[3])


@pytest.mark.parametrize("name", ["slots", "context", "chunk", "prefill_tokens"])
def test_settings_out_of_range_are_refused_by_name(name):
    with pytest.raises(UserError, match=rf"decode\.{name} must be at least"):
        settings(**{name: 0})


def test_broken_weights_are_an_error():
    decoder, params = model()
    broken = params | {"embedding": jnp.full_like(params["embedding"], jnp.nan)}
    with pytest.raises(UserError, match="NaN"):
        run(Sampler(decoder, broken, TOKENIZER, settings()), requests()[:1])

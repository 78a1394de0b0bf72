"""Log-probs of completions one whole sequence at a time, with a softmax over the vocabulary in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from iterpref_jax.models.decoder import Decoder

# All sequences behind one padding: what is behind a token changes nothing of it.
LENGTH = 512


@functools.cache
def _hidden(config, compute, lora):
    decoder = Decoder(config, compute, None, lora)
    places = jnp.arange(LENGTH, dtype=jnp.int32)[None]
    return jax.jit(lambda params, ids: decoder.hidden(params, ids, places, jnp.full_like(places, LENGTH))[0])


def completion_logps(decoder, params, prompt, completion):
    """The log-prob of every token of `completion` behind `prompt`, float64; of models with tied embeddings."""
    ids = np.zeros((1, LENGTH), np.int32)
    end = len(prompt) + len(completion)
    ids[0, :end] = np.concatenate([prompt, completion])
    hidden = np.asarray(_hidden(decoder.config, decoder.compute, decoder.lora)(params, ids), np.float64)
    logits = hidden[len(prompt) - 1 : end - 1] @ np.asarray(params["embedding"], np.float64).T
    logits -= logits.max(-1, keepdims=True)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logps[np.arange(len(completion)), completion]


def pair_logps(decoder, params, example):
    """The log-probs of a pair's chosen and rejected tokens."""
    return [
        completion_logps(decoder, params, example.prompt_ids, ids) for ids in (example.chosen_ids, example.rejected_ids)
    ]

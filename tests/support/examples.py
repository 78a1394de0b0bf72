"""Random pairs with the shapes of real ones: shared prompts and prefixes, focus anywhere, one side without focus."""

import numpy as np

from iterpref_jax.data.schema import Example, counts, make_index


def random_example(rng, vocab=97, longest=24):
    prompt = rng.integers(0, vocab, rng.integers(1, longest))
    common = rng.integers(0, vocab, rng.integers(0, longest))
    chosen = np.concatenate([common, rng.integers(0, vocab, rng.integers(1, longest))])
    rejected = np.concatenate([common, rng.integers(0, vocab, rng.integers(1, longest))])
    sparse = rng.random() < 0.2
    return Example(
        pair_id=f"pair/{rng.integers(10**9)}",
        task="task",
        prompt_ids=prompt.astype(np.int32),
        chosen_ids=chosen.astype(np.int32),
        rejected_ids=rejected.astype(np.int32),
        chosen_focus=(rng.random(len(chosen)) < 0.3).astype(np.uint8),
        rejected_focus=((rng.random(len(rejected)) < 0.2) & (not sparse)).astype(np.uint8),
    )


def random_examples(n, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    return [random_example(rng, **kwargs) for _ in range(n)]


def index_of(examples):
    place = {"shard": 0, "offset": 0, "length": 0, "crc": 0}
    return make_index([place | counts(example) for example in examples])

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


def random_group(rng, pairs, vocab=97, longest=24):
    """Pairs with one prompt and one chosen side; versions that equal, begin or leave the ones before them anywhere."""
    first = random_example(rng, vocab, longest)
    versions = [first.chosen_ids]
    for _ in range(pairs):
        known = versions[rng.integers(len(versions))]
        tail = rng.integers(0, vocab, rng.integers(1, longest)).astype(np.int32)
        kind, cut = rng.integers(4), rng.integers(0, len(known))
        versions.append((known, known[: cut + 1], np.concatenate([known, tail]), np.append(known[:cut], tail))[kind])
    return [
        first._replace(
            pair_id=f"{first.pair_id}#v{number}",
            rejected_ids=ids,
            chosen_focus=(rng.random(len(versions[0])) < 0.3).astype(np.uint8),
            rejected_focus=((rng.random(len(ids)) < 0.3) & (rng.random() < 0.8)).astype(np.uint8),
        )
        for number, ids in enumerate(versions[1:])
    ]


def random_groups(n, seed=0, most=4, **kwargs):
    """Examples in groups of 1 to `most` pairs, one group behind the other."""
    rng = np.random.default_rng(seed)
    return [example for _ in range(n) for example in random_group(rng, rng.integers(1, most + 1), **kwargs)]


def random_examples(n, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    return [random_example(rng, **kwargs) for _ in range(n)]


def index_of(examples):
    place = {"shard": 0, "offset": 0, "length": 0, "crc": 0}
    pairs = zip(examples, [None, *examples][:-1], strict=True)
    return make_index([place | counts(example, previous) for example, previous in pairs])

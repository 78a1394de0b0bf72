import argparse

import numpy as np
import pytest

from iterpref_jax import settings
from iterpref_jax.codeflow import records
from iterpref_jax.data import schema
from iterpref_jax.errors import UserError
from iterpref_jax.objectives.weights import RECIPES
from tests.data import tiny
from tests.support import runs


@pytest.fixture
def real_pairs(benchmark_module):
    return benchmark_module("real_pairs")


def opened(real_pairs, folder, *words, overrides=()):
    arguments = argparse.ArgumentParser()
    real_pairs.add_flags(arguments)
    return real_pairs.open_pairs(arguments.parse_args(words), overrides, folder)


def test_files_are_built_with_the_chat_template_of_their_tokenizer_or_without_any(real_pairs, tmp_path):
    records.write_trajectories(tmp_path / "histories.jsonl", tiny.trajectories(8))
    for name, template in ("chat", tiny.CHAT_TEMPLATE), ("raw", None):
        tiny.byte_level(chat_template=template).save_pretrained(tmp_path / f"of {name}")
        words = ["--data", str(tmp_path / "histories.jsonl"), "--tokenizer", str(tmp_path / f"of {name}")]
        text = opened(real_pairs, tmp_path / name, *words).metadata["text"]
        assert text["template"] == name
    separator = opened(real_pairs, tmp_path / "own", *words, overrides=["build.text.raw_separator=::"]).metadata["text"]
    assert separator["raw_separator"] == "::"


@pytest.mark.parametrize(
    ("words", "overrides", "named"),
    [
        (["--choose=all"], (), "--choose"),
        (["--max-tokens=7"], (), "--max-tokens"),
        ([], ["build.dedup=False"], "build."),
    ],
)
def test_words_of_a_build_are_refused_where_the_dataset_is_there(real_pairs, dataset_folder, words, overrides, named):
    with pytest.raises(UserError, match=rf"{named}.*: no effect"):
        opened(real_pairs, None, "--data", str(dataset_folder), *words, overrides=overrides)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_has_an_objective_without_a_reference(benchmark_module, recipe):
    words = [
        f"objective.recipe={recipe}",
        "objective.alpha=0.0",
        *benchmark_module("layouts").objective(recipe),
        "data.path=x",
        "model.path=y",
    ]
    run = settings.read_run(settings.load_config(str(runs.ROOT / "configs" / "base.py"), words))
    assert not run.objective.uses_reference


def test_drawn_pairs_are_whole_tasks_and_none_comes_twice(real_pairs, dataset_folder):
    dataset = schema.open_dataset(dataset_folder)
    split = dataset.split("train")
    drawn = real_pairs.draw(dataset, 10, seed=1)
    tasks = [split[record].task for record in drawn]
    assert len(set(drawn)) == 10
    everything = [split[record].task for record in range(len(split))]
    for task in dict.fromkeys(tasks[:-1]):
        if task != tasks[-1]:
            assert tasks.count(task) == everything.count(task)
    assert drawn != real_pairs.draw(dataset, 10, seed=2)


def test_a_subset_holds_the_same_pairs_in_the_order_asked_for(real_pairs, dataset_folder, tmp_path):
    dataset = schema.open_dataset(dataset_folder)
    found = schema.open_dataset(real_pairs.subset(dataset, [5, 2, 9], tmp_path / "part")).split("train")
    assert len(found) == 3
    for number, record in enumerate([5, 2, 9]):
        for got, wanted in zip(found[number], dataset.split("train")[record], strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_every_pair_lies_in_one_bucket_of_its_prompt_length(benchmark_module, dataset_folder):
    dataset = schema.open_dataset(dataset_folder)
    lengths = dataset.split("train").index.prompt_len
    middle = int(np.median(lengths))
    (low, first), (high, rest) = benchmark_module("layouts").buckets(dataset, [middle, 0])
    assert (low, high) == (f"0-{middle - 1}", f"{middle}-")
    assert sorted(first + rest) == list(range(len(lengths)))
    assert max(lengths[first], default=0) < middle <= min(lengths[rest])


def test_tokens_are_those_of_the_index(run_benchmark, dataset_folder):
    status, lines, table = run_benchmark(
        "layouts.py", "--buckets", "0", "--pairs", "0", "--pairs-per-step", "1", "--table"
    )
    assert status == 0
    index = schema.open_dataset(dataset_folder).split("train").index
    found = {line["layout"]: line for line in lines}
    both = int((index.chosen_len + index.rejected_len).sum())
    assert found["separate"]["tokens"] == 2 * index.prompt_len.sum() + both
    assert found["shared"]["tokens"] == index.prompt_len.sum() + both - index.common_len.sum()
    assert found["separate"]["targets"] == (index.chosen_len + index.rejected_focus_count).sum()
    # A step of one pair takes one row, however full it is.
    assert all(line["columns"] == line["row_tokens"] * len(index) for line in lines)
    assert len(table) == 1 + len(lines)


@pytest.mark.slow
def test_a_layout_that_shares_more_is_timed_on_fewer_tokens(run_benchmark):
    only = ("--only", "shared+truncate", "separate")
    status, (separate, shared), _ = run_benchmark("layouts.py", "--buckets", "0", "--pairs", "4", *only)
    assert status == 0
    assert (separate["layout"], shared["layout"]) == ("separate", "shared+truncate")
    assert 0 < shared["timed_tokens"] < separate["timed_tokens"] < separate["timed_columns"]
    # A process that holds JAX; one that holds nothing but Python takes a tenth of this.
    assert all(line["seconds_per_step"] > 0 and line["peak_bytes"] > 1e8 for line in (separate, shared))


def test_a_child_that_dies_or_takes_too_long_says_so(benchmark_module, monkeypatch, tmp_path):
    measured = benchmark_module("measured")
    monkeypatch.setattr(measured, "ROOT", tmp_path)
    script = tmp_path / "benchmarks" / "child.py"
    script.parent.mkdir()

    def run(code, timeout=60.0):
        script.write_text(code)
        return measured.run_child("python3", "child.py", {}, timeout=timeout, cpu=True)

    assert "last words" in run("raise SystemExit('last words')")["error"]
    assert "after 1 s" in run("import time; time.sleep(60)", timeout=1.0)["error"]

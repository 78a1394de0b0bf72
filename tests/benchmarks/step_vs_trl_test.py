import math
import subprocess
import sys

import pytest

from tests.benchmarks.conftest import FOLDER
from tests.train.trl_parity_test import INSTALL

SPEEDS = ("pairs_per_second", "pairs_per_second_with_reference")


@pytest.fixture
def step_vs_trl(benchmark_module):
    return benchmark_module("step_vs_trl")


def a_run(**changes):
    return {"tokens": [9, 9], "losses": [0.69, 0.5], "pairs": [["a"], ["b"]]} | changes


def test_the_same_losses_and_tokens_agree(step_vs_trl):
    theirs = a_run()
    del theirs["pairs"]
    assert step_vs_trl.disagreements({"separate": a_run(), "shared": a_run(tokens=[5, 5]), "trl/1": theirs}, 1e-3) == []


@pytest.mark.parametrize("losses", [[0.69, 0.502], [0.69, math.nan]])
def test_losses_of_one_objective_that_lie_apart_are_named(step_vs_trl, losses):
    (found,) = step_vs_trl.disagreements({"separate": a_run(), "trl/1": a_run(losses=losses)}, 1e-3)
    assert "trl/1" in found


def test_another_objective_may_have_other_losses(step_vs_trl):
    assert step_vs_trl.disagreements({"separate": a_run(), "focal": a_run(losses=[0.69, 0.1])}, 1e-3) == []


def test_steps_of_other_pairs_may_have_other_losses(step_vs_trl):
    other = a_run(losses=[0.69, 0.1], pairs=[["b"], ["a"]])
    assert step_vs_trl.disagreements({"focal": a_run(), "tree": other}, 1e-3) == []


def test_sequences_of_unequal_length_are_named(step_vs_trl):
    (found,) = step_vs_trl.disagreements({"separate": a_run(), "trl/1": a_run(tokens=[9, 8])}, 1e-3)
    assert "trl/1" in found


def line_of(variant, trained, with_reference, peak):
    return {"variant": variant, "peak_bytes": peak} | dict(zip(SPEEDS, (trained, with_reference), strict=True))


def test_ratios_are_to_the_fastest_trl_of_each_kind(step_vs_trl):
    lines = [
        line_of("separate", 2.0, 1.5, 80),
        line_of("focal", 8.0, 6.0, 40),
        line_of("trl/1", 1.0, 1.0, 100),
        line_of("trl/2", 2.0, 2.0, 160),
        line_of("trl_precomputed/1", 4.0, 3.0, 50),
    ]
    found = step_vs_trl.ratios({line["variant"]: line for line in lines})
    assert found["focal"] == {
        "recipe": "target_dpo",
        "speed_vs_trl/2": 3.0,
        "memory_vs_trl/2": 0.25,
        "speed_vs_trl_precomputed/1": 2.0,
        "memory_vs_trl_precomputed/1": 0.8,
        "speed_vs_separate": 4.0,
    }


def test_what_trl_does_on_a_gpu_anyway_is_no_variant_there(step_vs_trl):
    with pytest.raises(step_vs_trl.UserError, match="labelled positions only anyway"):
        step_vs_trl.parse(["--data", "x", "--device", "gpu", "--only", "focal,trl_labelled/1"])


def test_the_first_step_does_not_count(step_vs_trl):
    options, _ = step_vs_trl.parse(["--data", "x", "--pairs", "8"])
    numbers = {"start_host_bytes": 1, "reference_s_per_pair": 0.5, "load_average": 0.1, "losses": [0.7, 0.6, 0.5]}
    work = {"tokens": [90, 10, 20], "columns": [90, 16, 24]}
    runs = [
        numbers | work | {"step_s": [99.0, *after], "peak_bytes": peak} for after, peak in (([1, 3], 5), ([4, 8], 7))
    ]
    found = step_vs_trl.line("separate", runs, options)
    # Medians of 4 and 12 seconds for 8 pairs, in 2 steps.
    wanted = dict(pairs_per_second=1.0, seconds_per_step=4.0, pairs_per_second_with_reference=0.6667, peak_bytes=7)
    assert {name: found[name] for name in wanted} == wanted
    assert (found["tokens"], found["columns"], found["first_step_s"]) == (30, 40, [99.0, 99.0])


def test_a_variant_that_fails_says_why_and_the_others_go_on(step_vs_trl):
    options, _ = step_vs_trl.parse(["--data", "x"])
    found = step_vs_trl.line("trl/1", [{"error": "out of memory", "load_average": 0.1}], options)
    assert found["error"] == "out of memory"


def test_trl_starts_in_an_environment_without_jax():
    pytest.importorskip("torch", reason=INSTALL)
    pytest.importorskip("trl", reason=INSTALL)
    # A script's folder comes first, and transformers asks for a package `kernels`, the name of a file of that folder.
    program = f"import sys; sys.modules['jax'] = None; sys.path.insert(0, {str(FOLDER)!r}); import trl_step"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_ours_and_trl_train_alike(run_benchmark):
    pytest.importorskip("torch", reason=INSTALL)
    pytest.importorskip("trl", reason=INSTALL)
    words = ("--pairs", "4", "--trl-batch", "2", "--learning-rate", "1e-4")
    names = ("separate", "focal", "trl", "trl_precomputed", "trl_labelled")
    status, (*lines, last), _ = run_benchmark("step_vs_trl.py", "--only", ",".join(names), *words)
    assert status == 0, lines
    assert last["disagreements"] == []
    found = {line["variant"]: line for line in lines}
    theirs = ("trl/2", "trl_precomputed/2", "trl_labelled/2")
    assert found.keys() == {"separate", "focal", *theirs}
    separate = found["separate"]
    for name in theirs:
        assert found[name]["losses"] == pytest.approx(separate["losses"], abs=1e-4)
        assert found[name]["tokens"] == separate["tokens"] > found["focal"]["tokens"]
    # Equal losses mean nothing before weights have moved.
    assert separate["losses"][0] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(separate["losses"][1] - math.log(2)) > 1e-3
    assert found["trl_precomputed/2"]["reference_s_per_pair"] > 0 == found["trl/2"]["reference_s_per_pair"]

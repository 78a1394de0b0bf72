"""Every file of configs/sweeps loads, and its variants are settings that a run accepts."""

import re
from pathlib import Path

import pytest

from iterpref_jax import settings
from iterpref_jax.cli import sweep as command
from iterpref_jax.sweep import planning
from iterpref_jax.sweep.planning import BUILD, HELDOUT, TRAIN
from tests.support.runs import ROOT

FILES = sorted((ROOT / "configs" / "sweeps").glob("[a-z]*.py"))
WANTED = "recipes diff_method negatives beta alpha sampling model_size".split()
OURS = "empty_focus token_focus symmetric_rpo sigmoid_norm multi_branch".split()


def planner(file, folder, arg=""):
    names = ("", "debugging", "sampling")
    inputs = []
    for name in names:
        path = Path(folder) / f"{name or 'input'}.jsonl"
        path.write_text(name)
        inputs.append(f"{name}={path}" if name else str(path))
    return command.make_planner(f"{file}{arg}", str(folder), inputs, [])


def test_every_table_of_the_paper_and_every_question_of_ours_has_a_file():
    assert sorted(WANTED + OURS) == [file.stem for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("arg", ["", ":tiny", ":config=target_rpo_qwen2_5_coder_0_5b.py,seeds=2"])
def test_every_variant_is_accepted_by_settings(file, arg, tmp_path):
    if file.stem == "model_size" and "tiny" in arg:
        pytest.skip("random weights of one shape have no sizes")
    jobs = planner(file, tmp_path, arg).jobs()
    seeds = 2 if "seeds" in arg else 3
    assert len(jobs) == seeds * len(settings.load_config(f"{file}{arg}").variants)
    for job in jobs:
        assert [step.name for step in job.steps if step.name != BUILD] == [TRAIN, HELDOUT]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_says_its_command_its_cost_and_what_to_expect(file):
    text = file.read_text()
    assert f"iterpref sweep --config=configs/sweeps/{file.stem}.py" in text
    assert "Cost: " in text
    # 59k pairs, 3 epochs, by the base recipe's own plan.
    base = (ROOT / "configs" / "target_rpo_qwen2_5_coder_7b.py").read_text()
    hours = float(re.search(r"([\d.]+) chip hours an epoch of 100,000 pairs", base)[1]) * 0.59 * 3
    assert all(float(told) == round(hours) for told in re.findall(r"runs of about (\d+) chip hours", text))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_variants_differ_and_seeds_change_nothing_else(file, tmp_path):
    jobs = planner(file, tmp_path).jobs()
    first = {}
    for job in jobs:
        identity = dict(job.identity)
        seed = identity.pop("seed")
        for name in [name for name in identity if name.endswith(".seed")]:
            del identity[name]
        assert seed == job.seed
        assert first.setdefault(job.variant, identity) == identity
    assert len({str(sorted(identity.items())) for identity in first.values()}) == len(first)


def test_all_variants_are_evaluated_on_the_same_held_out_pairs(tmp_path):
    jobs = planner(ROOT / "configs" / "sweeps" / "negatives.py", tmp_path).jobs()
    assert len({job.identity["held-out dataset"] for job in jobs}) == 1
    assert len({job.identity["dataset"] for job in jobs}) == 4


def test_variants_with_equal_builds_share_a_dataset_and_its_reference(tmp_path):
    jobs = planner(ROOT / "configs" / "sweeps" / "beta.py", tmp_path).jobs()
    script = planning.script(jobs)
    assert sum(line.startswith("iterpref build") for line in script) == 1
    assert len({word for job in jobs for step in job.steps for word in step.words if "reference.path" in word}) == 1

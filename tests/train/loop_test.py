"""What a run refuses, and what it says when numbers go bad; one process, tiny data."""

import contextlib
import json
import os
import shutil

import pytest

from iterpref_jax import settings
from iterpref_jax.codeflow.focus import FocusSettings
from iterpref_jax.data import packing
from iterpref_jax.errors import UserError
from iterpref_jax.train import loop
from iterpref_jax.train.export import export
from iterpref_jax.train.loop import train
from iterpref_jax.train.run import open_run
from tests.data import tiny
from tests.support.runs import CONFIG, make_dataset, numbers, overrides


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


def load(dataset, **changes):
    flags = overrides(dataset, **{"train.steps": 2, "rows.rows_per_microbatch": 8, "optimizer.warmup": 0.0} | changes)
    words = [flag.removeprefix("--config.") for flag in flags]
    return settings.load_config(CONFIG.removeprefix("--config="), words)


def run(dataset, workdir, **changes):
    config = load(dataset, **changes)
    return train(open_run(settings.read_run(config), str(workdir)), settings.to_json(config))


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    # A relative path, as people type it.
    assert run(dataset, os.path.relpath(workdir)).finished
    return workdir


def test_metrics_have_trls_names_and_start_at_ln_2(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    start = lines[0]
    assert (start["step"], start["split"]) == (0, "eval")
    assert abs(start["preference_loss"] - 0.693147) < 1e-4
    update = next(line for line in lines if line["split"] == "train")
    names = """loss nll_loss rewards/chosen rewards/rejected rewards/margins rewards/accuracies logps/chosen
        logps/rejected grad_norm learning_rate pairs_per_second tokens_per_second mfu padding_fraction
        logratios/chosen_shared logratios/chosen_focus logratios/chosen_rest logratios/rejected_focus""".split()
    assert set(names) <= set(update)


def evaluation(workdir):
    """The held-out metrics before the first update; whether rewards of nothing but rounding are above 0 is chance."""
    line = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert (line["step"], line["split"]) == (0, "eval")
    return {name: value for name, value in line.items() if not name.endswith(("split", "accuracies"))}


def test_a_run_of_trees_reads_the_reference_cache_of_single_pairs_and_starts_from_the_same_numbers(
    dataset, finished, tmp_path
):
    changes = {"rows.layout": "tree", "reference.path": finished / "reference"}
    assert run(dataset, tmp_path, **changes).finished
    assert not (tmp_path / "reference").exists()
    assert evaluation(tmp_path) == pytest.approx(evaluation(finished), rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_steps_that_choose_the_length_of_their_rows_change_what_is_padding_and_no_other_number(
    dataset, tmp_path, monkeypatch
):
    # That pairs of some 40 tokens have lengths to choose from, and five steps are worth compiling for.
    monkeypatch.setattr(packing, "_LANES", 8)
    monkeypatch.setattr(packing, "_WORTH", 0)
    wide = {"rows.tokens": 256, "train.steps": 5, "train.global_batch": 10}
    plan = loop.Trainer(open_run(settings.read_run(load(dataset, **wide)), str(tmp_path)), None, {}).plan
    assert len({plan.packed(step).caps.tokens for step in range(5)}) > 1
    padding = []
    for lengths in (3, 0):
        assert run(dataset, tmp_path / str(lengths), **wide, **{"rows.lengths": lengths}).finished
        lines = numbers(tmp_path / str(lengths))
        padding.append([line.pop("padding_fraction") for line in lines if line["split"] == "train"])
    assert max(padding[0]) < min(padding[1])
    short, whole = (numbers(tmp_path / name) for name in ("3", "0"))
    for got, expected in zip(short, whole, strict=True):
        assert got.pop("split") == expected.pop("split")
        # Whether rewards of nothing but rounding are above 0 is chance.
        names = [name for name in expected if not name.endswith(("padding_fraction", "accuracies"))]
        assert {name: got[name] for name in names} == pytest.approx(
            {name: expected[name] for name in names}, rel=2e-3, abs=2e-3
        )


@pytest.mark.slow
def test_a_stopped_run_goes_on_from_its_checkpoint_on_another_mesh(dataset, finished, tmp_path, monkeypatch):
    updates = []
    update = loop.Trainer._update
    monkeypatch.setattr(loop.Trainer, "_update", lambda *words: updates.append(words) or update(*words))
    monkeypatch.setattr(loop, "stop_requested", lambda: contextlib.nullcontext(lambda: bool(updates)))
    assert run(dataset, tmp_path) == loop.Outcome(1, False)
    monkeypatch.undo()
    smaller = {"rows.rows_per_microbatch": load(dataset).rows.rows_per_microbatch // 2}
    mesh = {"mesh.fsdp": 2, "mesh.sequence": 2, "mesh.tensor": 2}
    assert run(dataset, tmp_path, **mesh, **smaller) == loop.Outcome(2, True)
    for got, expected in zip(numbers(tmp_path), numbers(finished), strict=True):
        assert got.pop("split") == expected["split"]
        # Smaller microbatches are filled better.
        assert got.pop("padding_fraction", 0) <= expected.get("padding_fraction", 0)
        # The first Adam update has the size of the learning rate whatever the gradient: rounding of near-zero
        # gradients decides its sign, so only sums over all parameters are comparable.
        assert got == pytest.approx({name: expected[name] for name in got}, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_ends_an_evaluation_which_a_resumed_run_makes_anew(dataset, finished, tmp_path, monkeypatch, asked):
    # Of the evaluations before the first update and after it.
    stops, evaluate = [], loop.HeldOut.evaluate

    def interrupted(held_out, params, stop):
        stops.append(len(stops) == asked)
        return evaluate(held_out, params, stop)

    monkeypatch.setattr(loop.HeldOut, "evaluate", interrupted)
    monkeypatch.setattr(loop, "stop_requested", lambda: contextlib.nullcontext(lambda: bool(stops) and stops[-1]))
    changes = {"train.eval_every": 1, "train.checkpoint_every": 0}
    assert run(dataset, tmp_path, **changes) == loop.Outcome(asked, False)
    assert len(stops) == asked + 1
    assert (tmp_path / "checkpoints" / "1").exists() == bool(asked)
    monkeypatch.undo()
    assert run(dataset, tmp_path, **changes) == loop.Outcome(2, True)
    evaluated = [line["step"] for line in numbers(tmp_path) if line["split"] == "eval"]
    assert evaluated == [0, 1, 2]


def test_an_export_loads_in_transformers_and_starts_another_run(dataset, finished, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch", reason="loading a model in transformers needs torch")
    config = load(dataset)
    assert (
        export(
            open_run(settings.read_run(config), str(finished)),
            str(tmp_path / "hf"),
            step=None,
            dtype="",
            max_shard_gb=5,
        )
        == 2
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.config.num_hidden_layers == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert model.config.eos_token_id == tokenizer.eos_token_id is not None
    with config.unlocked():
        config.model.path, config.model.init = str(tmp_path / "hf"), {}
    again = open_run(settings.read_run(config), str(tmp_path / "again"))
    assert again.load_params()["embedding"].shape == tuple(model.model.embed_tokens.weight.shape)


def test_another_configuration_in_the_same_folder_is_refused_by_name(dataset, finished):
    with pytest.raises(UserError, match=r"objective\.link\.beta: was 0\.1, is 0\.5"):
        run(dataset, finished, **{"objective.link.beta": 0.5})


def test_a_reference_cache_of_other_weights_is_refused_with_the_reason(dataset, finished, tmp_path):
    with pytest.raises(UserError, match=r"does not belong to this run(.|\n)*weights: cache"):
        run(dataset, tmp_path, **{"reference.path": finished / "reference", "model.init.hidden_size": 32})


def test_a_reference_cache_of_other_data_is_refused_with_the_reason(finished, tmp_path):
    other = make_dataset(tmp_path, count=26)
    with pytest.raises(UserError, match=r"does not belong to this run(.|\n)*data: cache"):
        run(other, tmp_path / "run", **{"reference.path": finished / "reference"})


def test_a_reference_cache_of_another_template_is_refused_with_the_reason(finished, tmp_path):
    rules = tiny.settings(tokenizer=str(tmp_path / "tokenizer"), fence="none")
    other = make_dataset(tmp_path, text=rules)
    with pytest.raises(UserError, match=r"does not belong to this run(.|\n)*template: cache"):
        run(other, tmp_path / "run", **{"reference.path": finished / "reference"})


def test_a_flipped_bit_in_the_reference_cache_is_found(dataset, finished, tmp_path):
    shutil.copytree(finished / "reference", tmp_path / "reference")
    part = tmp_path / "reference" / "train" / "part-00000"
    data = bytearray(part.read_bytes())
    data[20] ^= 1
    part.write_bytes(data)
    with pytest.raises(UserError, match="part-00000"):
        run(dataset, tmp_path, **{"reference.path": tmp_path / "reference"})


def test_a_recipe_that_needs_another_focus_says_how_to_build_it(dataset):
    with pytest.raises(UserError, match=r"needs records with 'token' focus.*--config\.build\.focus\.mode=token"):
        open_run(settings.read_run(load(dataset, **{"objective.recipe": "token_focus"})), "unused")


def test_links_that_take_no_focus_for_certainty_refuse_pairs_without_focus(tmp_path):
    kept = make_dataset(tmp_path, focus=FocusSettings(mode="line", empty="keep", seed=0))
    for link, why in ("ipo", "takes the mean"), ("cpo", "sets its log-prob"):
        with pytest.raises(UserError, match=rf"pairs have no rejected focus.*'{link}' {why}"):
            open_run(settings.read_run(load(kept, **{"objective.link.name": link})), "unused")
    open_run(settings.read_run(load(kept)), "unused")


def test_records_of_another_tokenizer_are_refused(dataset, finished, tmp_path):
    config = load(dataset)
    folder = tmp_path / "hf"
    export(open_run(settings.read_run(config), str(finished)), str(folder), step=None, dtype="", max_shard_gb=5)
    tiny.byte_level(nfc=True).save_pretrained(folder)
    with config.unlocked():
        config.model.path, config.model.init = str(folder), {}
    with pytest.raises(UserError, match="not the tokenizer that made the records"):
        open_run(settings.read_run(config), "unused")


def test_nan_stops_the_run_with_step_metric_pairs_and_last_good_checkpoint(dataset, tmp_path):
    # One update of warm-up at a rate of 0, then one that throws the parameters out of range.
    huge = {"optimizer.learning_rate": 1e30, "optimizer.schedule": "constant", "optimizer.warmup": 0.5}
    with pytest.raises(UserError, match=r"update 2: \S+ is (nan|inf)") as error:
        run(dataset, tmp_path, **huge, **{"train.checkpoint_every": 1})
    assert "checkpoints/1" in str(error.value)
    assert "h" in str(error.value).split("`iterpref show`): ")[1]


def test_a_tokenizer_that_transformers_would_load_as_another_is_refused_from_scratch(tmp_path):
    from iterpref_jax.codeflow import records
    from iterpref_jax.data.build import build

    tiny.byte_level().save_pretrained(tmp_path / "tokenizer")
    records.write_trajectories(tmp_path / "t.jsonl", tiny.trajectories(12))
    build([tmp_path / "t.jsonl"], tmp_path / "data", tiny.build_settings(tmp_path / "tokenizer"))
    with pytest.raises(UserError, match="would load this tokenizer as another one"):
        open_run(settings.read_run(load(tmp_path / "data")), "unused")


def test_a_second_training_run_in_one_folder_is_refused(dataset, tmp_path):
    with loop.only_trainer(tmp_path), pytest.raises(UserError, match="another process is training in"):
        run(dataset, tmp_path)


@pytest.mark.slow
def test_bfloat16_parameters_resume_exactly(dataset, tmp_path, monkeypatch):
    half = {"model.param_dtype": "bfloat16", "train.checkpoint_every": 1}
    run(dataset, tmp_path / "whole", **half)
    updates = []
    update = loop.Trainer._update
    monkeypatch.setattr(loop.Trainer, "_update", lambda *words: updates.append(words) or update(*words))
    monkeypatch.setattr(loop, "stop_requested", lambda: contextlib.nullcontext(lambda: bool(updates)))
    run(dataset, tmp_path / "stopped", **half)
    monkeypatch.undo()
    run(dataset, tmp_path / "stopped", **half)
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(dataset, finished, tmp_path):
    run(dataset, tmp_path, **{"data.pipeline.workers": 1})
    assert numbers(tmp_path) == numbers(finished)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.clip_norm", -1.0), ("optimizer.b1", 1.5), ("optimizer.weight_decay", -1.0), ("seed", -1),
        ("reference.pairs_per_part", 0), ("data.pipeline.threads", 0), ("train.global_batch", 0),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_by_name(dataset, name, value):
    with pytest.raises(UserError, match=name.split(".")[-1]):
        settings.read_run(load(dataset, **{name: value}))


def test_settings_without_effect_are_refused_by_name(dataset):
    for changes, name in (
        ({"objective.recipe": "target_dpo", "objective.alpha": 0.0, "objective.nll_norm": "token"}, "nll_norm"),
        ({"objective.recipe": "sft", "objective.link.name": "ipo"}, "link.name"),
        ({"objective.recipe": "sft", "objective.link.label_smoothing": 0.1}, "link.label_smoothing"),
        ({"objective.recipe": "sft", "reference.path": "somewhere"}, "reference.path"),
    ):
        with pytest.raises(UserError, match=f"{name}.* has no effect"):
            settings.read_run(load(dataset, **changes))


def test_a_part_of_the_reference_cache_that_was_cut_short_is_computed_anew(dataset, finished, tmp_path, capsys):
    shutil.copytree(finished / "reference", tmp_path / "reference")
    part = tmp_path / "reference" / "train" / "part-00001"
    whole = part.read_bytes()
    part.write_bytes(whole[:-5])
    run(dataset, tmp_path, **{"reference.path": tmp_path / "reference"})
    assert "part-00001 was cut short: computing it anew" in capsys.readouterr().err
    assert part.stat().st_size == len(whole)


def test_a_checkpoint_without_its_metadata_is_named_with_the_one_before(dataset, tmp_path):
    run(dataset, tmp_path, **{"train.checkpoint_every": 1})
    (tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(UserError, match=r"checkpoints/2 cannot be read.*to go on from step 1"):
        run(dataset, tmp_path, **{"train.checkpoint_every": 1})


def test_rows_that_a_mesh_cannot_split_are_refused(dataset):
    with pytest.raises(UserError, match="make it a multiple of 8"):
        open_run(settings.read_run(load(dataset, **{"rows.rows_per_microbatch": 3})), "unused")


def test_rows_that_nobody_counted_are_one_a_part_of_the_mesh(dataset):
    found = open_run(settings.read_run(load(dataset, **{"rows.rows_per_microbatch": 0})), "unused")
    assert found.settings.rows.rows_per_microbatch == found.placement.row_shards() == 8


def test_export_names_the_steps_that_exist(dataset, finished, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint of step 7; it has \[2\]"):
        export(
            open_run(settings.read_run(load(dataset)), str(finished)), str(tmp_path), step=7, dtype="", max_shard_gb=5
        )

"""A plan of a tiny step on eight virtual devices, against numbers by hand and against its own compilation."""

import dataclasses
import json
import re

import pytest

from iterpref_jax import settings
from iterpref_jax.cli import plan as command
from iterpref_jax.errors import UserError
from iterpref_jax.models.hf_config import from_hf
from iterpref_jax.plan import hlo
from iterpref_jax.plan.collectives import collectives
from iterpref_jax.plan.loops import Loops
from iterpref_jax.plan.memory import saved_bytes
from iterpref_jax.plan.planning import Target, plan_step, whole_rows
from iterpref_jax.plan.workload import made_workload
from iterpref_jax.train.compiled import compile_step
from tests.support.runs import CONFIG
from tests.support.virtual_chips import VIRTUAL, virtual_topology

PAIR = dict(prompt=40, completion=60, common=20, focus_end=40, focus=5)
CHANGES = {
    "model.init.vocab_size": 512,
    "rows.rows_per_microbatch": 8,
    "rows.tokens": 256,
    **{f"plan.pair.{name}": tokens for name, tokens in PAIR.items()},
}
LAYERS, WIDTH = 2, 64
# What a gathered kernel is called by JAX: the product that uses it or, from 0.12 on, the slice of the stacked layers.
OF_A_KERNEL = ("dot_general", "dynamic_index_in_dim)/squeeze")
# Attention's four and the MLP's three kernels of a layer, float32.
KERNELS = 4 * (WIDTH * 16 * (4 + 2 + 2 + 4) + 3 * WIDTH * 160)


def opened(**changes):
    given = [f"{name}={value}" for name, value in ({"data.path": "none"} | CHANGES | changes).items()]
    config = settings.load_config(CONFIG.removeprefix("--config="), given)
    about, run = settings.read_section(config, "plan"), settings.read_run(config)
    target = Target(from_hf(run.model.init), virtual_topology(), about.efficiency)
    return made_workload(whole_rows(run, target), about.pair, pairs=100), target


@pytest.fixture(scope="module")
def compiled():
    """The step's compilation by itself, in two microbatches: (load, step, program, how often each part runs)."""
    load, target = opened(**{"train.global_batch": 32})
    step = compile_step(load.settings, target.config, load.caps, microbatches=2, topology=target.topology)
    program = hlo.read(step.text)
    return load, step, program, Loops(program).runs(microbatches=2, tiles=1, looped=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What the command writes for the same step in one microbatch."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    overrides = [f"--config.{name}={value}" for name, value in CHANGES.items()]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(command, "open_topology", lambda name, slices: virtual_topology())
        status = command.main([CONFIG, "--topology=v6e:2x4", "--pairs=160", f"--json={path}", *overrides])
    found = json.loads(path.read_text())
    assert (status, found["fits"]) == (0, True)
    return found


def test_two_pairs_of_these_lengths_fill_a_row():
    load, _ = opened()
    # Shared prompt and beginning, and what is behind them of each side up to its last weighted token.
    assert (load.rows, load.microbatches, load.sample.pairs) == (8.0, 1, 16)


def test_every_layer_gathers_its_weights_twice_a_microbatch_and_never_whole(compiled):
    _, _, program, runs = compiled
    found = collectives(program, runs, devices=8)
    # From JAX 0.12.0.1 on, norms' scales are gathered under the same name.
    gathers = [one for one in found if one.kind == "all-gather" and one.size > 4 * WIDTH]
    product, layer = ([one for one in gathers if one.op_name.endswith(name)] for name in OF_A_KERNEL)
    gathered = sum(one.size * one.count for one in product or layer)
    # Forward, and once more for the backward pass.
    assert gathered == 2 * 2 * LAYERS * KERNELS
    assert max(one.size for one in found if one.kind == "all-gather") <= max(KERNELS, 4 * 512 * WIDTH)


def test_the_forward_pass_leaves_what_went_into_each_layer(compiled):
    load, _, program, runs = compiled
    # A device has one row of the microbatch; float32.
    a_layer = 4 * load.caps.tokens * WIDTH
    assert LAYERS * a_layer <= saved_bytes(program, runs) < 2 * LAYERS * a_layer


def test_the_parts_of_the_memory_are_the_peak(written):
    memory = written["memory"]
    parts = ("params", "optimizer", "batch", "gradients", "activations", "temporaries")
    assert sum(memory[name] for name in parts) == memory["peak"]
    assert memory["optimizer"] == 2 * memory["params"] + 8
    assert memory["gradients"] == memory["params"]


def test_the_peak_is_that_of_the_compilation(written):
    load, target = opened()
    step = compile_step(load.settings, target.config, load.caps, microbatches=1, topology=target.topology)
    assert written["memory"]["peak"] == step.memory.peak


def test_an_epoch_takes_its_steps_times_the_longest_term(written):
    roof, epoch = written["roofline"], written["epoch"]
    assert epoch["steps"] == 160 / 16
    assert roof["step_seconds"] == max(roof[name] for name in ("compute", "memory", "links", "network"))
    assert epoch["seconds"] == pytest.approx(10 * roof["step_seconds"])
    assert epoch["chip_hours"] == pytest.approx(8 * epoch["seconds"] / 3600)
    # A FLOP a second, of which six tenths are taken to be reached.
    assert roof["compute"] == pytest.approx(written["work"]["executed"] / 8 / 0.6)


def test_a_pair_executes_more_flops_than_it_needs(written):
    flops = written["flops_a_pair"]
    assert flops["executed"] > flops["model"] > 0


def test_a_step_that_does_not_fit_says_what_to_change():
    load, target = opened()
    small = dataclasses.replace(target.topology, chip=dataclasses.replace(VIRTUAL, usable_bytes=2**16))
    planned = plan_step(load, dataclasses.replace(target, topology=small))
    assert not planned.fits
    assert planned.memory is not None
    assert planned.memory.peak > planned.limit == 2**16
    assert planned.roofline is None


def test_rows_that_nobody_counted_are_one_a_part_of_the_mesh():
    load, _ = opened(**{"rows.rows_per_microbatch": 0})
    assert load.settings.rows.rows_per_microbatch == 8


def test_rows_that_the_mesh_does_not_split_are_raised_to_the_next_multiple():
    load, _ = opened(**{"rows.rows_per_microbatch": 3})
    assert load.settings.rows.rows_per_microbatch == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--search", "--largest"], "--largest has no effect with --search"),
        (["--json=/nowhere/plan.json"], "--json=/nowhere/plan.json: the folder /nowhere does not exist"),
    ],
)
def test_a_plan_refuses_before_it_compiles(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        command.main([CONFIG, "--topology=v6e:2x4", *words])

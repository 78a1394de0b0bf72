"""What a person reads: the table of a plan that fits, of one that does not, and of a search."""

import dataclasses

import pytest

from iterpref_jax.parallel.interconnect import Exchange
from iterpref_jax.plan import report
from iterpref_jax.plan.advice import advice
from iterpref_jax.plan.arithmetic import Work
from iterpref_jax.plan.collectives import Total
from iterpref_jax.plan.memory import Memory
from iterpref_jax.plan.planning import Planned
from iterpref_jax.plan.roofline import Roofline
from tests.plan.planning_test import opened

GIB = 2**30
MEMORY = Memory(
    params=4 * GIB,
    optimizer=8 * GIB,
    batch=0,
    gradients=4 * GIB,
    activations=GIB,
    temporaries=GIB,
    peak=18 * GIB,
    host=0,
)
SENT = Exchange(link_bytes=3 * GIB, link_seconds=1.0, network_bytes=0.0, network_seconds=0.0)


@pytest.fixture(scope="module")
def load_and_target():
    return opened()


@pytest.fixture
def fits():
    return Planned(
        mesh={"fsdp": 8},
        remat="full",
        rows_per_microbatch=16,
        microbatches=2,
        compile_seconds=1.0,
        fits=True,
        limit=20 * GIB,
        memory=MEMORY,
        refusal="",
        work=Work(executed=8e15, model=4e15, executed_a_pair=5e14, model_a_pair=2.5e14, tiles=1),
        collectives=[
            Total(kind="all-gather", axes=("fsdp",), devices=8, count=56, size=4.0 * GIB, exchange=SENT)
        ],
        hbm_bytes=1e12,
        host_bytes=0.0,
        roofline=Roofline(compute=2.0, memory=3.0, links=1.0, network=0.0),
    )  # fmt: skip


def lines(planned, load_and_target, largest=None):
    return report.table(planned, *load_and_target, largest).splitlines()


def test_the_table_names_the_parts_the_collectives_and_the_binding_term(fits, load_and_target):
    text = lines(fits, load_and_target, largest=24)
    for wanted in (
        "memory a chip: fits (20.00 GiB are for programs)",
        "  optimizer               8.000 GiB",
        "  largest             24 rows a microbatch fit",
        "  all-gather          fsdp (8): 56 times, 3.000 GiB over NVLink",
        "  HBM                     3.000 s at 80%  <- binding",
        "  step                    3.000 s, 4.000 s if nothing is exchanged while chips compute",
        # 100 pairs in batches of 16, three seconds each.
        "  epoch               100 pairs in 6.2 steps: 18.8 s, 0.0 chip hours",
    ):
        assert wanted in text


def test_a_plan_that_does_not_fit_says_by_how_much_and_what_would_help(fits, load_and_target):
    refused = dataclasses.replace(
        fits, fits=False, limit=16 * GIB, refusal="too large", collectives=None, hbm_bytes=None, roofline=None
    )
    found = advice(refused, *load_and_target)
    assert found[0].startswith("2.00 GiB too much a chip")
    named = [line.partition(":")[0] for line in found[1:-1]]
    assert named == [
        "rows.rows_per_microbatch=8",
        "model.compute.remat=offload",
        "optimizer.offload=True",
        "optimizer.state_dtype=bfloat16",
        "model.param_dtype=bfloat16",
        "model.lora.rank=16",
    ]
    assert "memory a chip: DOES NOT FIT (16.00 GiB are for programs)" in lines(refused, load_and_target)


def test_levers_that_are_used_are_not_offered_again(fits, load_and_target):
    load, target = load_and_target
    settings = load.settings
    used = dataclasses.replace(
        settings, optimizer=dataclasses.replace(settings.optimizer, offload=True, state_dtype="bfloat16")
    )
    found = "\n".join(advice(dataclasses.replace(fits, fits=False), load.with_settings(used), target))
    assert "optimizer." not in found.replace("optimizer.master", "").replace("optimizer.offload puts", "")


def test_a_search_prints_flags_that_can_be_pasted(fits, load_and_target):
    text = report.best([fits], *load_and_target)
    assert "--config.mesh.fsdp=8 --config.model.compute.remat=full --config.rows.rows_per_microbatch=16" in text
    assert "nothing that was compiled fits" in report.best([], *load_and_target)

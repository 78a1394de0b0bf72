"""What a search tries and keeps; steps are not compiled but take what they are said to take."""

import dataclasses

import pytest

from iterpref_jax.parallel.candidates import candidates
from iterpref_jax.plan import search as module
from iterpref_jax.plan.estimate import estimate, held
from iterpref_jax.plan.memory import Memory
from iterpref_jax.plan.planning import Planned
from iterpref_jax.plan.roofline import Roofline
from tests.plan.planning_test import opened
from tests.support.virtual_chips import virtual_topology


def test_every_mesh_has_all_devices_and_splits_heads_evenly():
    found = list(candidates(virtual_topology(), heads=4, experts=0))
    shapes = [dataclasses.astuple(mesh) for mesh in found]
    assert len(set(shapes)) == len(shapes)
    for data, fsdp, expert, sequence, tensor in shapes:
        assert data * fsdp * expert * sequence * tensor == 8
        assert expert == 1
        assert 4 % (sequence * tensor) == 0
    assert (1, 8, 1, 1, 1) in shapes
    assert (2, 2, 1, 1, 2) in shapes


def test_axes_that_exchange_activations_stay_within_a_host():
    two = dataclasses.replace(virtual_topology(), domains=(0, 0, 1, 1, 2, 2, 3, 3))
    found = candidates(two, heads=8, experts=8)
    assert {mesh.tensor * mesh.sequence * mesh.expert for mesh in found} == {1, 2}


def test_more_is_estimated_for_more_rows_and_less_for_rematerialisation():
    load, target = opened(**{"rows.lengths": 0})

    def estimated(settings):
        decoder = target.decoder(settings)
        return estimate(load.with_settings(settings), target, decoder, held(settings, decoder))

    base, none = estimated(load.settings), estimated(module._with_remat(load.settings, "none"))
    assert estimated(module.with_rows(load.settings, 16)).peak > base.peak
    assert none.peak > base.peak
    assert none.seconds < base.seconds


@pytest.fixture
def tried(monkeypatch):
    """Steps on pure replicas do not fit; others take as long as they have parts along the inner axes."""
    seen = []

    def plan_step(load, target):
        mesh, rows = load.settings.mesh, load.settings.rows.rows_per_microbatch
        seen.append((mesh, rows, load.settings.model.compute.remat))
        fits = mesh.data < 8
        seconds = float(mesh.tensor * mesh.sequence)
        zeros = {field.name: 0 for field in dataclasses.fields(Memory)}
        return Planned(
            mesh=dataclasses.asdict(mesh),
            remat=load.settings.model.compute.remat,
            rows_per_microbatch=rows,
            microbatches=1,
            compile_seconds=0.0,
            fits=fits,
            limit=target.topology.usable_bytes,
            memory=Memory(**zeros | {"peak": 10}) if fits else None,
            refusal="" if fits else "too large",
            work=None,
            collectives=[],
            hbm_bytes=0.0,
            host_bytes=0.0,
            roofline=Roofline(compute=seconds, memory=0.0, links=0.0, network=0.0) if fits else None,
        )

    monkeypatch.setattr(module, "plan_step", plan_step)
    return seen


def test_the_best_that_fit_are_kept_fastest_first(tried):
    load, target = opened()
    found = module.search(load, target)
    assert len(found) == module.SHOWN
    assert all(planned.fits for planned in found)
    seconds = [planned.roofline.seconds for planned in found]
    assert seconds == sorted(seconds)
    assert len(tried) == len(set(tried)) <= module.MOST_COMPILED

"""Experts over devices: exact for every routing, even all tokens to one expert, and work that follows the routing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.models import expert_groups, experts
from iterpref_jax.models.layers import ACTIVATIONS
from tests.support.meshes import placed

EXPERTS, CHOICES, EMBED, MLP = 8, 2, 8, 6


def inputs(routing):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6, EMBED))
    weight = rng.uniform(size=(4, 6, CHOICES))
    chosen = {
        "any": np.stack([rng.permutation(EXPERTS)[:CHOICES] for _ in range(24)]).reshape(4, 6, CHOICES),
        "two of one device": np.broadcast_to([3, 2], (4, 6, CHOICES)),
        "the last expert of all": np.broadcast_to([7, 0], (4, 6, CHOICES)),
    }[routing]
    kernels = [0.3 * rng.normal(size=(EXPERTS, *shape)) for shape in ((EMBED, MLP), (EMBED, MLP), (MLP, EMBED))]
    return (
        [jnp.asarray(a, jnp.float32) for a in (x, weight)],
        jnp.asarray(chosen),
        [jnp.asarray(kernel, jnp.float32) for kernel in kernels],
    )


def value_and_gradients(run, floats, chosen, kernels):
    def total(x, weight, *kernels):
        out = run(x, weight, chosen, *kernels)
        return jnp.sin(out).sum(), out

    return jax.jit(jax.value_and_grad(total, argnums=range(5), has_aux=True))(*floats, *kernels)


@pytest.mark.parametrize(
    ("routing", "slack", "sizes"),
    [
        ("any", 1.25, dict(fsdp=2, expert=2, tensor=2)),
        ("any", 0.3, dict(expert=4)),
        ("two of one device", 1.25, dict(expert=4)),
        ("the last expert of all", 0.3, dict(fsdp=2, expert=2, tensor=2)),
    ],
    ids=str,
)
def test_every_routing_gives_what_one_device_gives(monkeypatch, routing, slack, sizes):
    monkeypatch.setattr(expert_groups, "SLACK", slack)
    silu, placement = ACTIVATIONS["silu"], placed(**sizes)
    arrays = inputs(routing)
    alone = value_and_gradients(lambda *a: experts._through_experts(silu, *a), *arrays)
    spread = value_and_gradients(lambda *a: expert_groups.through_groups(placement, silu, *a), *arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), spread, alone)


@pytest.mark.parametrize(("routing", "chunks"), [("two of one device", [0, 4, 0, 0]), ("even", [1, 1, 1, 1])])
def test_a_device_takes_as_many_chunks_as_its_experts_were_chosen(routing, chunks):
    placement = placed(expert=4)
    (x, weight), chosen, kernels = inputs("two of one device")
    if routing == "even":
        chosen = jnp.arange(48).reshape(4, 6, CHOICES) % EXPERTS
    spread = expert_groups.Spread.of(placement, x, kernels[0])

    def count(x, weight, chosen):
        own = expert_groups._Own(spread, x, weight, chosen, EXPERTS // 4)
        return jnp.broadcast_to(own.chunks, x.shape[:2])

    found = placement.map_shards(
        count, (x[..., :1].squeeze(-1), weight, chosen), [("row", "token")] + [expert_groups.CHOICES] * 2
    )
    assert found[:, 0].tolist() == chunks

"""What the backward pass finds of a layer's forward pass, what it makes again, and where what it finds lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from iterpref_jax.ops.kept import ATTENTION, LAYER_INPUT, MLP, PRODUCTS


@dataclasses.dataclass(frozen=True)
class Remat:
    """Keeps the inputs of every layer and the results in `keeps` (names of `ops.kept`); all else is made again.

    `in_host` puts what is kept into the host's memory until the backward pass asks for it.
    """

    keeps: tuple[str, ...]
    in_host: bool

    def policy(self) -> Callable[..., Any]:
        policies = jax.checkpoint_policies
        if not self.in_host:
            return policies.save_only_these_names(*self.keeps)
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_INPUT, *self.keeps],
            offload_src="device",
            offload_dst="pinned_host",
        )


# model.compute.remat -> what that is; None keeps everything that any gradient needs.
REMATS: dict[str, Remat | None] = {
    "none": None,
    "full": Remat((), in_host=False),
    "save_attention": Remat((ATTENTION,), in_host=False),
    "save_mlp": Remat((MLP,), in_host=False),
    "save_attention_mlp": Remat((ATTENTION, MLP), in_host=False),
    # No product is made again, only what is cheap between them: less memory, and less to write and read, than "none".
    "save_products": Remat((ATTENTION, MLP, PRODUCTS), in_host=False),
    "offload": Remat((), in_host=True),
    "offload_attention": Remat((ATTENTION,), in_host=True),
    "offload_mlp": Remat((MLP,), in_host=True),
    "offload_attention_mlp": Remat((ATTENTION, MLP), in_host=True),
}


def rematerialised(layer: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Returns a layer whose backward pass keeps what `REMATS[name]` says; it must run in a scan."""
    remat = REMATS[name]
    # A scan's loop already keeps the two passes apart.
    return layer if remat is None else jax.checkpoint(layer, policy=remat.policy(), prevent_cse=False)

"""What to change when a step does not fit: levers that are not used yet, with what each is worth."""

from __future__ import annotations

from iterpref_jax.plan.planning import Planned, Target
from iterpref_jax.plan.workload import Workload

GIB = 2**30


def advice(planned: Planned, load: Workload, target: Target) -> list[str]:
    """Returns the changes that lower the peak, those that cost least time first."""
    settings, memory = load.settings, planned.memory
    found = []
    if memory:
        found.append(f"{(memory.peak - planned.limit) / GIB:.2f} GiB too much a chip; what would lower the peak:")
    shards = target.decoder(settings).placement
    least = shards.row_shards() if shards else 1
    if planned.rows_per_microbatch > least:
        found.append(
            f"rows.rows_per_microbatch={least}: fewer activations, more microbatches (--largest looks for the most)"
        )
    if planned.remat == "none" or planned.remat.startswith("save"):
        found.append("model.compute.remat=full: only what goes into each layer is kept for the backward pass")
    elif not planned.remat.startswith("offload") and memory:
        found.append("model.compute.remat=offload: what goes into each layer waits in the host's memory")
    if memory and not settings.optimizer.offload and not settings.model.lora.rank:
        found.append(f"optimizer.offload=True: AdamW's {memory.optimizer / GIB:.2f} GiB lie in the host's memory")
    if memory and settings.optimizer.state_dtype == "float32" and not settings.optimizer.offload:
        found.append(f"optimizer.state_dtype=bfloat16: about {memory.optimizer / 2 / GIB:.2f} GiB less")
    if memory and settings.model.param_dtype == "float32":
        found.append(
            f"model.param_dtype=bfloat16: parameters take {memory.params / 2 / GIB:.2f} GiB less, and are rounded by "
            "chance (optimizer.master=True keeps float32 copies, which optimizer.offload puts into the host's memory)"
        )
    if not settings.model.lora.rank:
        found.append("model.lora.rank=16: only adapters have gradients and optimizer state")
    found.append("more chips, which share parameters, gradients and optimizer along the mesh's sharded axes (--search)")
    return found

"""Model size: the paper's table 13, over Qwen2.5-Coder.

    iterpref sweep --config=configs/sweeps/model_size.py --input=trajectories.jsonl --workdir=SWEEP

Cost: 6 variants x 3 seeds; chip hours grow with the parameters (`iterpref plan` of each). Print the jobs and send each
to devices that hold it. From 14B on the learning rate is 5e-6 (paper, App. A.3). Log-ratios of models of different
sizes have no common scale: compare accuracies. Expected: no result of ours yet.
"""

from configs import sweeps

LOWER = ("optimizer.learning_rate=5e-6",)


def get_config(arg: str = ""):
    return sweeps.make(
        arg,
        {
            f"{size}B": (f"model.path=Qwen/Qwen2.5-Coder-{size}B", *(LOWER if float(size) >= 14 else ()))
            for size in ("7", "0.5", "1.5", "3", "14", "32")
        },
    )

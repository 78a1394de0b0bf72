"""The parameters of a run's checkpoint, for what comes after training; the run may be going on meanwhile."""

from __future__ import annotations

import contextlib

from etils import epath

from iterpref_jax.data.text_rules import load_tokenizer
from iterpref_jax.errors import UserError
from iterpref_jax.models.lora import joined, parted
from iterpref_jax.models.transformer import Params, abstract_params, param_shardings
from iterpref_jax.train.best import parse_best
from iterpref_jax.train.checkpoint import Checkpoints
from iterpref_jax.train.metrics import read_metrics
from iterpref_jax.train.run import Run
from iterpref_jax.train.token_ids import MODEL_TOKENIZER

# Instead of a step: the checkpoint that `train.keep_best` keeps.
BEST = "best"


def restore_params(run: Run, step: int | str | None) -> tuple[int, Params]:
    """Returns the step of a checkpoint (default: the newest) and all parameters of then, in the shards of `run`.

    Raises:
        UserError: no checkpoint, or not that step (those that exist are named), or one that was damaged.
    """
    step, trained = restore_trained(run, step)
    if not run.decoder.lora.rank:
        return step, trained
    _check_base(run, step)
    return step, joined(parted(run.load_params())[1], trained)


def _check_base(run: Run, step: int) -> None:
    """Refuses adapters on another base than they were trained on, where that is read from another place than then."""
    with contextlib.closing(_checkpoints(run)) as checkpoints:
        about = checkpoints.about(step)
    if about["config"]["model"]["path"] == run.settings.model.path:
        return
    if about["fingerprint"]["weights"] != run.fingerprint["weights"]:
        raise UserError(
            f"model.path={run.settings.model.path} holds other weights than the model whose adapters {run.workdir} "
            f"trained ({about['config']['model']['path']}): name a folder with those"
        )


def restore_trained(run: Run, step: int | str | None) -> tuple[int, Params]:
    """Returns the step and what was trained: all parameters, or the adapters; see `restore_params` for the errors."""
    with contextlib.closing(_checkpoints(run)) as checkpoints:
        step = _found_step(run, checkpoints, step)
        config, dtype, lora = run.decoder.config, run.settings.model.param_dtype, run.decoder.lora
        shapes, shardings = (
            parted(tree)[0]
            for tree in (abstract_params(config, dtype, lora), param_shardings(config, dtype, run.placement, lora))
        )
        return step, checkpoints.restore_params(step, shapes, shardings)


def find_step(run: Run, step: int | str | None) -> int:
    """Returns the number of the checkpoint that is meant; see `restore_params` for the errors. No weight is read."""
    with contextlib.closing(_checkpoints(run)) as checkpoints:
        return _found_step(run, checkpoints, step)


def _checkpoints(run: Run) -> Checkpoints:
    # Not writing: a training run may be saving in this folder right now.
    return Checkpoints(str(run.workdir / "checkpoints"), keep=run.settings.train.keep_checkpoints, writing=False)


def _found_step(run: Run, checkpoints: Checkpoints, step: int | str | None) -> int:
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{checkpoints.folder} holds no checkpoint yet")
    step = chosen_step(step, steps, run.workdir, run.settings.train.keep_best)
    if not isinstance(step, int) or step not in steps:
        raise UserError(f"{checkpoints.folder} has no checkpoint of step {step}; it has {steps}")
    return step


def chosen_step(step: int | str | None, steps: list[int], workdir: epath.Path, keep_best: str) -> int | str:
    """Returns the step that is meant: the newest of `steps` for None, by `train.keep_best` of a run for `BEST`.

    Raises:
        UserError: nothing says which is the best.
    """
    return _best(workdir, keep_best, steps) if step == BEST else steps[-1] if step is None else step


def _best(workdir: epath.Path, keep_best: str, steps: list[int]) -> int:
    best = parse_best(keep_best)
    if best is None:
        raise UserError(
            f"{workdir} kept no best checkpoint: train.keep_best was empty; name a step instead, it has {steps}"
        )
    metrics = workdir / "metrics.jsonl"
    scores = best.scores(read_metrics(metrics)) if metrics.exists() else {}
    found = best.step({step: score for step, score in scores.items() if step in steps})
    if found is None:
        raise UserError(f"{metrics} has no {best.metric} of steps {steps}; name a step instead")
    return found


def tokenizer_folder(run: Run) -> str:
    """Returns the model's own folder, or the dataset's where the model lacks a tokenizer or the chat template."""
    own, made = run.model_folder, run.dataset.tokenizer_path
    if not own or not (epath.Path(own) / MODEL_TOKENIZER).exists():
        return made
    needs_template = run.dataset.metadata["text"]["template"] == "chat" and not load_tokenizer(own).chat_template
    return made if needs_template else own

"""What a run is made of, put together and checked before any compute is spent.

dataset folder ─┬─ splits, costs ── plans ── pipelines
model folder  ──┴─ decoder, parameters (in their shards) ── steps ── reference cache
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
from etils import epath

from iterpref_jax.data.batch import RowBatch
from iterpref_jax.data.layout import Costs, RowSettings, Weighting, costs
from iterpref_jax.data.packing import Plan, resolve_caps
from iterpref_jax.data.pipeline import PipelineSettings, StepSource
from iterpref_jax.data.schema import Dataset, Split, open_dataset
from iterpref_jax.data.text_rules import load_tokenizer
from iterpref_jax.errors import UserError
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.adapters import check_targets, load_base
from iterpref_jax.models.checkpoint_folder import resolve
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.decoder import Compute, Decoder
from iterpref_jax.models.fingerprint import weights_fingerprint
from iterpref_jax.models.hf_config import from_hf, notices
from iterpref_jax.models.lora import Lora, adapters_of, joined
from iterpref_jax.models.shares import check_tokens
from iterpref_jax.models.transformer import Params, abstract_params, init_adapters, init_params
from iterpref_jax.objectives.links import LINKS
from iterpref_jax.objectives.preference import ObjectiveSettings
from iterpref_jax.parallel.mesh import MeshSettings, make_mesh
from iterpref_jax.parallel.rules import Placement
from iterpref_jax.progress import say
from iterpref_jax.train import host_rows, reference
from iterpref_jax.train.best import parse_best
from iterpref_jax.train.gradients import ACCUMULATE_DTYPES
from iterpref_jax.train.optimizer import OptimizerSettings
from iterpref_jax.train.profile import ProfileSettings
from iterpref_jax.train.reference import ReferenceSettings, ReferenceSplit
from iterpref_jax.train.remote import check_scheme
from iterpref_jax.train.run_files import RunFiles
from iterpref_jax.train.token_ids import check_tokenizer
from iterpref_jax.train.wandb_log import LogSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A Hugging Face folder to start from, or (`path` empty) a shape to initialise; and how it is computed."""

    path: str
    init: dict[str, Any]
    param_dtype: str
    compute: Compute
    lora: Lora

    def __post_init__(self):
        if self.lora.quantize and not self.lora.rank:
            raise UserError(
                f"model.lora.quantize = {self.lora.quantize!r} has no effect without adapters: set model.lora.rank, or "
                "leave it empty"
            )
        if bool(self.path) == bool(self.init):
            raise UserError(
                "set exactly one of model.path (a Hugging Face folder) and model.init (a shape to initialise)"
            )
        if self.param_dtype not in ("float32", "bfloat16"):
            raise UserError(f"model.param_dtype must be float32 or bfloat16, not {self.param_dtype!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The dataset folder and its reader."""

    path: str
    pipeline: PipelineSettings

    def __post_init__(self):
        if not self.path:
            raise UserError("set data.path to the folder that `iterpref build` wrote: --config.data.path=DIR")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Length and rhythm of a run; `steps` 0 means `epochs`, an interval of 0 means never (but at the end)."""

    global_batch: int
    epochs: float
    steps: int
    eval_every: int
    checkpoint_every: int
    keep_checkpoints: int
    keep_best: str
    accumulate_dtype: str

    def __post_init__(self):
        if (
            self.global_batch < 1
            or self.keep_checkpoints < 1
            or min(self.eval_every, self.checkpoint_every, self.steps) < 0
        ):
            raise UserError(
                "train.global_batch and train.keep_checkpoints must be at least 1, intervals and steps at least 0"
            )
        if self.steps == 0 and self.epochs <= 0:
            raise UserError("set train.epochs (or train.steps) above 0")
        if self.steps and self.epochs:
            raise UserError(f"train.steps = {self.steps} and train.epochs = {self.epochs}: set one of them to 0")
        _check_best(self)
        if self.accumulate_dtype not in ACCUMULATE_DTYPES:
            raise UserError(f"train.accumulate_dtype must be float32 or bfloat16, not {self.accumulate_dtype!r}")


def _check_best(settings: LoopSettings) -> None:
    every, evaluated = settings.checkpoint_every, settings.eval_every
    if parse_best(settings.keep_best) and (not every or not evaluated or every % evaluated):
        raise UserError(
            f"train.keep_best = {settings.keep_best!r} needs an evaluation of every checkpoint: train.checkpoint_every "
            f"is {every}, make it a multiple of train.eval_every, which is {evaluated} (0 = never)"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Everything that `train` and `reference` read."""

    seed: int
    data: DataSettings
    model: ModelSettings
    rows: RowSettings
    objective: ObjectiveSettings
    optimizer: OptimizerSettings
    train: LoopSettings
    reference: ReferenceSettings
    profile: ProfileSettings
    log: LogSettings
    mesh: MeshSettings

    def __post_init__(self):
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be at least 0 and below 2**63, got {self.seed}")
        if self.optimizer.master and (self.model.param_dtype == "float32" or self.model.lora.rank):
            trained = "adapters, which are float32" if self.model.lora.rank else "float32 parameters"
            raise UserError(
                f"optimizer.master has no effect on {trained}: leave it False, or set model.param_dtype = bfloat16 and "
                "train without adapters"
            )
        if self.objective.router_aux_loss_coef and not self.rows.rows_per_microbatch:
            raise UserError(
                "rows.rows_per_microbatch is 0, one row for each part of the mesh, but the router's loss "
                "(objective.router_aux_loss_coef) is of one microbatch, not to depend on devices: give a number"
            )
        for name, unset in (("path", ""), ("rows_per_microbatch", 0)):
            if getattr(self.reference, name) != unset and not self.objective.uses_reference:
                raise UserError(
                    f"reference.{name} has no effect with recipe {self.objective.recipe!r} and link "
                    f"{self.objective.link.name!r}, which need no reference; leave it at {unset!r}"
                )

    @property
    def weighting(self) -> Weighting:
        return Weighting(recipe=self.objective.weights, seed=self.seed, nll_norm=self.objective.nll_norm)


@dataclasses.dataclass(frozen=True)
class Run:
    """A checked run: open dataset, model shape and devices. Nothing large is loaded until `load_params`."""

    settings: RunSettings
    workdir: epath.Path
    dataset: Dataset
    decoder: Decoder
    placement: Placement
    # Where the weights lie ("" for a model from scratch): model.path, or where a hub's files were put.
    model_folder: str

    @functools.cached_property
    def files(self) -> RunFiles:
        """The small files: of a run in a bucket, a local copy of them."""
        return RunFiles(self.workdir)

    @functools.cached_property
    def train_split(self) -> Split:
        return self.dataset.split("train")

    @functools.cached_property
    def eval_split(self) -> Split | None:
        return self.dataset.split("eval") if "eval" in self.dataset.splits else None

    def splits(self) -> dict[str, Split]:
        found = {"train": self.train_split, "eval": self.eval_split}
        return {name: split for name, split in found.items() if split is not None}

    def costs(self, split: Split) -> Costs:
        return costs(split.index, self.settings.rows, self.settings.weighting)

    def parameters(self) -> int:
        """The number of the model's parameters, adapters included."""
        shapes = abstract_params(self.decoder.config, self.settings.model.param_dtype)
        adapters = adapters_of(abstract_params(self.decoder.config, "float32", self.decoder.lora))
        return sum(math.prod(shape.shape) for shape in jax.tree.leaves((shapes, adapters)))

    def load_params(self) -> Params:
        """Reads (or initialises) the parameters into their shards; adapters start by changing nothing."""
        config, dtype, lora = self.decoder.config, self.settings.model.param_dtype, self.decoder.lora
        if not self.model_folder:
            return init_params(config, self.settings.seed, dtype, self.placement, lora)
        if not lora.rank:
            return hf_checkpoint.load(self.model_folder, dtype, self.placement)[1]
        base = load_base(self.model_folder, config, dtype, self.placement, lora)
        return joined(base, init_adapters(config, self.settings.seed, self.placement, lora))

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What the numbers of this run depend on besides its configuration; all processes ask first together."""
        model = self.settings.model
        weights = f"init {model.init} seed {self.settings.seed}"
        if self.model_folder:
            weights = weights_fingerprint(self.model_folder)
        return {
            "data": {name: split.index.fingerprint() for name, split in self.splits().items()},
            "tokenizer": self.dataset.metadata["text"]["tokenizer_fingerprint"],
            "template": {
                key: rule for key, rule in self.dataset.metadata["text"].items() if key != "tokenizer_fingerprint"
            },
            "weights": weights,
        }

    def place(self, batch: RowBatch) -> RowBatch:
        """Puts a batch of this host's rows on the devices, as one batch over all hosts split by the sharding rules."""
        return host_rows.place(batch, self.placement)

    def reference_path(self) -> str:
        return self.settings.reference.path or str(self.workdir / "reference")

    def reference_fingerprint(self) -> dict[str, Any]:
        targets = reference.weighting_fingerprint(self.settings.weighting)
        dtypes = {"param_dtype": self.settings.model.param_dtype, "compute_dtype": self.decoder.compute.compute_dtype}
        stored = {"quantize": self.decoder.lora.quantize, "quantized": list(self.decoder.lora.targets)}
        dtypes |= {key: value for key, value in stored.items() if self.decoder.lora.quantize}
        return self.fingerprint | dtypes | {f"targets/{key}": value for key, value in targets.items()}

    def reference_cache(self, name: str, pairs_per_part: int) -> ReferenceSplit:
        terms = self.costs(self.splits()[name]).terms
        return ReferenceSplit(epath.Path(self.reference_path()) / name, terms, pairs_per_part)

    def open_reference(self) -> int:
        """Returns the pairs a part of a cache that fits this run; see `reference.open_cache` for the errors."""
        path = self.reference_path()
        per_part = reference.open_cache(path, self.reference_fingerprint())
        if per_part is None:
            raise UserError(f"there is no reference cache at {path}; make it with `iterpref reference`")
        return per_part


def step_source(run: Run, name: str, plan: Plan) -> StepSource:
    """Returns this host's batches of a split, with the reference log-probs where the objective uses them."""
    settings = run.settings
    cached = run.reference_cache(name, run.open_reference()) if settings.objective.uses_reference else None
    return StepSource(
        split=run.splits()[name],
        plan=plan,
        rows=settings.rows,
        weighting=settings.weighting,
        reference=cached,
        own=host_rows.own_rows(run.placement, plan.rows_per_microbatch),
    )


def open_run(settings: RunSettings, workdir: str, *, training: bool = True, exported: bool = True) -> Run:
    """Opens and checks everything that is small: dataset, recipe against focus, tokenizer against model, mesh, rows.

    Without `training` (export) rows need not fit the devices or the data. A model that is not to be `exported` may be
    of another family than the tokenizer.

    Raises:
        UserError: whatever does not fit, before any weight is read.
    """
    check_scheme(workdir)
    dataset = open_dataset(settings.data.path)
    _check_focus(dataset, settings.objective)
    _check_sides(dataset, settings)
    folder = resolve(settings.model.path) if settings.model.path else ""
    config = hf_checkpoint.model_config(folder) if folder else init_config(settings.model, dataset)
    for notice in notices(hf_checkpoint.config_content(folder)) if folder and training else ():
        say(f"{settings.model.path}: {notice}")
    check_targets(config, settings.model.lora)
    if settings.objective.router_aux_loss_coef and not config.num_experts:
        raise UserError(f"objective.router_aux_loss_coef has no effect on {config.model_type}, which has no experts")
    check_tokenizer(dataset, folder, config, exported)
    placement = Placement(make_mesh(settings.mesh))
    decoder = Decoder(config, settings.model.compute, placement, settings.model.lora)
    settings = dataclasses.replace(settings, rows=settings.rows.spread(placement.row_shards()))
    run = Run(settings, epath.Path(workdir), dataset, decoder, placement, folder)
    if training:
        _check_training(run)
    return run


def _check_training(run: Run) -> None:
    """Refuses what does not fit the data or the mesh."""
    settings, placement = run.settings, run.placement
    if settings.train.keep_best and run.eval_split is None:
        raise UserError(
            f"train.keep_best has no effect: {settings.data.path} has no held-out pairs (build.eval_fraction drew none)"
        )
    placement.sharding(("row",), (settings.rows.rows_per_microbatch,))
    check_tokens(settings.rows.tokens, placement)
    if settings.reference.rows_per_microbatch % placement.row_shards():
        raise UserError(
            f"reference.rows_per_microbatch is {settings.reference.rows_per_microbatch}: make it a multiple of "
            f"{placement.row_shards()}, the parts that the mesh splits rows into"
        )
    for name, split in run.splits().items():
        resolve_caps(run.costs(split), settings.rows, name)


def _check_focus(dataset: Dataset, objective: ObjectiveSettings) -> None:
    wanted, found = objective.weights.focus_mode, dataset.metadata["focus"]
    if wanted is not None and wanted != found:
        raise UserError(
            f"recipe {objective.recipe!r} needs records with {wanted!r} focus, but {dataset.path} was built with "
            f"{found!r}; build it again with --config.build.focus.mode={wanted}"
        )


def _check_sides(dataset: Dataset, settings: RunSettings) -> None:
    """Refuses sides without focus where no token would read as log-prob 0, probability 1.

    A mean over it does, and so does a sum that no reference's sum is taken from.
    """
    link = LINKS[settings.objective.link.name]
    if not settings.objective.weights.has_preference or (link.uses_reference and not link.takes_means):
        return
    why = "takes the mean over it" if link.takes_means else "sets its log-prob, 0, against no reference's"
    for name in dataset.splits:
        index = dataset.split(name).index
        empty = {side: int((getattr(index, f"{side}_focus_count") == 0).sum()) for side in ("chosen", "rejected")}
        for side, pairs in empty.items():
            if pairs and getattr(settings.objective.weights, side) in ("focus", "hybrid"):
                raise UserError(
                    f"{dataset.path}: {pairs} {name} pairs have no {side} focus, and link "
                    f"{settings.objective.link.name!r} {why}; build the records with "
                    "--config.build.focus.empty=drop or anchor, or choose a link such as sigmoid"
                )


def init_config(settings: ModelSettings, dataset: Dataset) -> ModelConfig:
    init = dict(settings.init)
    if not init.get("vocab_size"):
        # Rounded up to whole lanes; the ids above the tokenizer's are never used.
        tokens = len(load_tokenizer(dataset.tokenizer_path))
        init["vocab_size"] = -(-tokens // 128) * 128
    return from_hf(init)

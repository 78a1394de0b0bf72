"""Histories or pairs in, a dataset folder out: resumable, parallel, and the same bytes however it was run.

The work lies in `OUT.building/` until one rename makes it `OUT`: what a killed build finished is kept, and there
is never half a dataset under the final name.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import process as process_pool
from typing import Any

from etils import epath

import iterpref_jax
from iterpref_jax import progress
from iterpref_jax.atomic import replace_text
from iterpref_jax.codeflow import filters, records
from iterpref_jax.codeflow import pairs as pairing
from iterpref_jax.codeflow.interrupt import sigterm_interrupts
from iterpref_jax.data import assemble, build_report, chunks, schema, text_rules, tokenize, worker
from iterpref_jax.data.chunks import BuildSettings
from iterpref_jax.errors import UserError
from iterpref_jax.locks import held

HASH_BYTES = 1 << 20
# Raised where the same input and settings give other records, so that no build goes on from those of before.
RECORDS_VERSION = 2
AHEAD = 2
MOST_GARBLED = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildReport:
    """A finished dataset: where it is, pairs per split, dropped per rule, and all of `report.json`."""

    path: pathlib.Path
    pairs: dict[str, int]
    dropped: dict[str, int]
    content: dict[str, Any]


def build(inputs: Sequence[epath.PathLike], out: epath.PathLike, settings: BuildSettings) -> BuildReport:
    """Makes the dataset `out` (a local folder) from trajectory and pair files, or finishes one that was stopped.

    Raises UserError for bad input, an `out` that holds something else, a full disk, nothing left after the filters,
    or a stop by signal; the message says what was kept and how to go on.
    """
    out = _local(out)
    inputs = [os.fspath(path) for path in inputs]
    tokenizer = text_rules.load_tokenizer(settings.text.tokenizer)
    encoder = tokenize.Encoder(tokenizer, text_rules.make_rules(settings.text, tokenizer))
    plan = _make_plan(inputs, settings, encoder.rules)
    building = out.parent / f"{out.name}.building"
    if out.exists():
        _check_same(out, plan)
        progress.say(f"already built: {out}")
    else:
        with _explained(building), _locked(building):
            _build_in(building, out, inputs, plan, encoder, settings)
    shutil.rmtree(building, ignore_errors=True)
    return _read_report(out)


def _build_in(
    building: pathlib.Path,
    out: pathlib.Path,
    inputs: list[str],
    plan: dict[str, Any],
    encoder: tokenize.Encoder,
    settings: BuildSettings,
) -> None:
    _start_or_continue(building, plan)
    dropped: collections.Counter[str] = collections.Counter()
    total = _count_pairs(inputs, settings, dropped)
    benchmarks = filters.load_benchmarks(settings.filters)
    tools = chunks.Tools(encoder=encoder, settings=settings, benchmarks=benchmarks, folder=building / "chunks")
    pairs = _pairs(inputs, settings, collections.Counter())
    _make_chunks(tools, chunks.mark_repeats(pairs, encoder), total)
    count = -(-total // chunks.CHUNK_PAIRS)
    markers = [chunks.whole_marker(tools.folder, number) for number in range(count)]
    for marker in markers:
        dropped.update(marker["dropped"])
    counts = {rule.name: dropped[rule.name] for rule in filters.RULES}
    # The first of each rule, in the order of the input.
    examples = {rule: example for marker in reversed(markers) for rule, example in marker["examples"].items()}
    _refuse_garbled(markers, counts, examples, settings.text.tokenizer)
    _refuse_empty(markers, counts, total)
    about = {"plan": plan, "inputs": _described(inputs), "dropped": counts, "dropped_examples": examples}
    assemble.assemble(tools, building / "dataset", count, about)
    os.rename(building / "dataset", out)
    progress.say(f"dataset: {out} (report: {out / 'report.md'})")
    report = _read_report(out)
    if leak := build_report.leak_warning(report.content):
        progress.say(f"warning: {leak}")
    if settings.eval_fraction and not report.pairs.get("eval"):
        share = f"build.eval_fraction = {settings.eval_fraction}"
        progress.say(f"warning: no pair is held out: {share} drew none of so few tasks; raise it to evaluate on some")


def _local(out: epath.PathLike) -> pathlib.Path:
    if "://" in os.fspath(out):
        raise UserError(f"{out}: datasets are built on a local disk (a rename must be one step); copy the folder then")
    path = pathlib.Path(out).expanduser().absolute()
    if path.name.endswith(".building"):
        raise UserError(f"{out}: a name that ends in .building is kept for unfinished datasets; name it otherwise")
    return path


def _make_plan(inputs: list[str], settings: BuildSettings, rules: text_rules.TextRules) -> dict[str, Any]:
    """Everything that the records depend on; paths and the number of workers do not count."""
    if not inputs:
        raise UserError("no input files: name at least one file of trajectories or pairs")
    content = dataclasses.asdict(settings)
    del content["workers"], content["text"]["tokenizer"]
    content["filters"]["benchmarks"] = [_file_hash(path) for path in settings.filters.benchmarks]
    plan = {
        "schema_version": schema.SCHEMA_VERSION,
        "records_version": RECORDS_VERSION,
        "iterpref_jax": iterpref_jax.__version__,
        "chunk_pairs": chunks.CHUNK_PAIRS,
        "inputs": [_file_hash(path) for path in inputs],
        "settings": content,
        "text": dataclasses.asdict(rules),
    }
    return json.loads(json.dumps(plan))


def _file_hash(path: str) -> str:
    digest = hashlib.sha256()
    if not epath.Path(path).exists():
        raise UserError(f"{path}: no such file")
    with epath.Path(path).open("rb") as source:
        while block := source.read(HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _check_same(out: pathlib.Path, plan: dict[str, Any]) -> None:
    try:
        found = schema.open_dataset(out).metadata["plan"]
    except UserError as error:
        raise UserError(
            f"{out} exists and is no finished dataset: remove it or name another folder ({error})"
        ) from error
    if found != plan:
        changed = ", ".join(sorted(key for key in plan if found.get(key) != plan[key]))
        raise UserError(f"{out} is a dataset of another plan (changed: {changed}): remove it or name another folder")


def _start_or_continue(building: pathlib.Path, plan: dict[str, Any]) -> None:
    stored = building / "plan.json"
    if stored.exists():
        if json.loads(stored.read_text()) == plan:
            done = len(list((building / "chunks").glob("*.json")))
            progress.say(f"continuing the build in {building}: {done} chunks are done")
            return
        progress.say(f"{building} holds an unfinished build of another plan: starting anew")
    for old in ("chunks", "dataset"):
        shutil.rmtree(building / old, ignore_errors=True)
    (building / "chunks").mkdir()
    replace_text(stored, json.dumps(plan))


def _pairs(inputs: list[str], settings: BuildSettings, skipped: collections.Counter[str]) -> Iterator[records.Pair]:
    kinds = {path: records.file_kind(path) for path in inputs}
    histories = [path for path in inputs if kinds[path] == "trajectories"]
    trajectories = itertools.chain.from_iterable(map(records.read_trajectories, histories))
    yield from pairing.make_pairs(trajectories, settings.pairs, skipped)
    for path in inputs:
        if kinds[path] == "pairs":
            yield from records.read_pairs(path)


def _count_pairs(inputs: list[str], settings: BuildSettings, skipped: collections.Counter[str]) -> int:
    """Reads all input once, so that a bad row or a repeated name ends the build before the long work."""
    seen: set[str] = set()
    for pair in _pairs(inputs, settings, skipped):
        if pair.pair_id in seen:
            raise UserError(f"two pairs have the pair_id {pair.pair_id!r} (inputs: {inputs}): make them unique")
        seen.add(pair.pair_id)
    return len(seen)


def _make_chunks(tools: chunks.Tools, items: Iterator[chunks.Item], total: int) -> None:
    groups = enumerate(iter(lambda: list(itertools.islice(items, chunks.CHUNK_PAIRS)), []))
    done = {
        n: about["pairs"] for n in range(-(-total // chunks.CHUNK_PAIRS)) if (about := chunks.marker(tools.folder, n))
    }
    open_groups = ((number, group) for number, group in groups if number not in done)
    with progress.progress("build", total, "pairs", start=sum(done.values())) as advance:
        if len(done) * chunks.CHUNK_PAIRS >= total:
            return
        make = _in_processes if tools.settings.workers else _in_process
        for pairs in make(tools, open_groups):
            advance(pairs)


def _in_process(tools: chunks.Tools, groups: Iterable[tuple[int, list[chunks.Item]]]) -> Iterator[int]:
    for number, group in groups:
        yield chunks.make_chunk(tools, number, group)


def _in_processes(tools: chunks.Tools, groups: Iterable[tuple[int, list[chunks.Item]]]) -> Iterator[int]:
    workers = tools.settings.workers
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(tools,)
    )
    try:
        waiting: set[concurrent.futures.Future[int]] = set()
        for number, group in groups:
            waiting.add(pool.submit(_make_in_worker, number, group))
            if len(waiting) >= AHEAD * workers:
                done, waiting = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                yield from (future.result() for future in done)
        for future in concurrent.futures.as_completed(waiting):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker_tools: chunks.Tools | None = None


def _start_worker(tools: chunks.Tools) -> None:
    global _worker_tools
    _worker_tools = tools
    # Processes share the cores already; threads of the tokenizer on top of them only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    worker.begin()


def _make_in_worker(number: int, group: list[chunks.Item]) -> int:
    assert _worker_tools is not None
    return chunks.make_chunk(_worker_tools, number, group)


def _refuse_garbled(
    markers: list[dict[str, Any]], dropped: dict[str, int], examples: dict[str, str], tokenizer: str
) -> None:
    """A text here and there is dropped; where they are many, the tokenizer is at fault, and the rest no sample."""
    garbled = dropped["not_reversible"]
    kept = sum(about["pairs"] for marker in markers for about in marker["splits"].values())
    encoded = kept + sum(dropped[name] for name in ("not_reversible", "prompt_too_long", "too_many_tokens"))
    if garbled > MOST_GARBLED * encoded:
        raise UserError(
            f"the tokenizer at {tokenizer!r} does not give the text of {garbled} of {encoded} pairs back, more than "
            f"{MOST_GARBLED:.0%}; the first: {examples['not_reversible']}; use a tokenizer that keeps every byte, or "
            "leave such pairs out"
        )


def _refuse_empty(markers: list[dict[str, Any]], dropped: dict[str, int], total: int) -> None:
    kept = {split: sum(m["splits"][split]["pairs"] for m in markers if split in m["splits"]) for split in chunks.SPLITS}
    if kept["train"]:
        return
    reasons = ", ".join(f"{name} {number}" for name, number in dropped.items() if number) or "no rule dropped any"
    raise UserError(f"no pair is left for training, of {total} pairs; {kept['eval']} went to eval; dropped: {reasons}")


def _described(inputs: list[str]) -> list[dict[str, str]]:
    return [{"name": pathlib.PurePath(path).name, "kind": records.file_kind(path)} for path in inputs]


def _read_report(out: pathlib.Path) -> BuildReport:
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    pairs = {name: about["pairs"] for name, about in content["splits"].items()}
    return BuildReport(path=out, pairs=pairs, dropped=content["dropped"], content=content)


@contextlib.contextmanager
def _locked(building: pathlib.Path) -> Iterator[None]:
    """Keeps a second build of the same folder out."""
    building.mkdir(parents=True, exist_ok=True)
    with held(building / "lock", f"{building}: another process builds this dataset now; wait for it or stop it"):
        yield


@contextlib.contextmanager
def _explained(building: pathlib.Path) -> Iterator[None]:
    """Turns signals, a full disk and dead workers into messages that say what was kept."""
    kept = f"the finished chunks are kept in {building}; the same command goes on from there"
    try:
        with sigterm_interrupts():
            yield
    except KeyboardInterrupt as error:
        raise UserError(f"stopped by a signal: {kept}") from error
    except process_pool.BrokenProcessPool as error:
        raise UserError(f"a worker died (out of memory?): {kept}, with fewer workers if memory ran out") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"no space left on the disk: make room; {kept}") from error

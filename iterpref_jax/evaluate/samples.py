"""Samples and verdicts of a run, stored as they come: files that a killed process can leave and the next one goes on.

`samples.jsonl`: task_id, sample, text (as the model wrote it), form, finish_reason. `verdicts.jsonl`: task_id, sample,
solution (the program that was judged), tier, outcomes; `references.jsonl`: the same of published solutions, if these
must pass. `settings.json`: what all were made with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from iterpref_jax.atomic import replace_text, whole_lines
from iterpref_jax.codeflow import rows
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate.judging import Judged, Outcome
from iterpref_jax.locks import held

SAMPLES, VERDICTS, REFERENCES, SETTINGS = "samples.jsonl", "verdicts.jsonl", "references.jsonl", "settings.json"
LOCK = ".lock"
# What is made of the verdicts.
RESULTS, REPORT, PAGE = "results.json", "report.md", "report.html"
# answer: what a model was asked for, to be cleaned; completion: what follows the prompt, and solution: a whole program,
# both judged as they are.
Form = Literal["answer", "completion", "solution"]
FORMS: tuple[Form, ...] = get_args(Form)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Number `sample` of the answers to one task."""

    task_id: str
    sample: int
    text: str
    form: Form
    finish_reason: str

    @property
    def key(self) -> tuple[str, int]:
        return self.task_id, self.sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a sample: the program that it became, and its outcomes."""

    task_id: str
    sample: int
    solution: str
    judged: Judged

    @classmethod
    def of(cls, sample: Sample, solution: str, judged: Judged) -> Verdict:
        return cls(task_id=sample.task_id, sample=sample.sample, solution=solution, judged=judged)

    @property
    def key(self) -> tuple[str, int]:
        return self.task_id, self.sample


class Appender:
    """Appends rows to a JSON Lines file, each whole before the next."""

    def __init__(self, path: Path):
        self._file = path.open("ab")

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *ended: object) -> None:
        self._file.close()

    def add(self, row: Sample | Verdict) -> None:
        text = json.dumps(_row(row), ensure_ascii=False)
        # Half of a surrogate pair, which a byte-level model may write, is no text.
        self._file.write(text.encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()


def read_samples(folder: Path) -> dict[tuple[str, int], Sample]:
    """Returns the stored samples by task and number."""
    return {(row["task_id"], row["sample"]): Sample(**row) for row in _rows(folder / SAMPLES)}


def read_verdicts(path: Path) -> dict[tuple[str, int], Verdict]:
    """Returns the verdicts of a file, `VERDICTS` or `REFERENCES` of a run's folder, by task and number."""
    found = {}
    for row in _rows(path):
        outcomes = tuple(Outcome(**outcome) for outcome in row.pop("outcomes"))
        verdict = Verdict(judged=Judged(outcomes=outcomes, tier=row.pop("tier")), **row)
        found[verdict.key] = verdict
    return found


def import_samples(path: str) -> Iterator[Sample]:
    """Yields the samples of a file: ours, or EvalPlus' (`task_id` and `solution` or `completion`; a task may repeat).

    Raises:
        UserError: a row that is neither, or that lacks a field of its kind or has another.
    """
    counts: dict[str, int] = {}
    for place, row in rows.read_rows(path):
        task_id = rows.take(row, "task_id", str, place)
        number = counts.get(task_id, 0)
        counts[task_id] = number + 1
        if "form" in row and "text" in row:
            yield _own(row, number, place)
            continue
        form: Form = "solution" if "solution" in row else "completion"
        if form not in row:
            raise UserError(f"{place}: wanted 'solution' or 'completion' beside 'task_id', found {', '.join(row)}")
        yield Sample(
            task_id=task_id, sample=number, text=rows.take(row, form, str, place), form=form, finish_reason="stored"
        )


def _own(row: rows.Row, number: int, place: str) -> Sample:
    known = tuple(field.name for field in dataclasses.fields(Sample))
    rows.refuse_unknown(row, known, place, f"a row with 'form' has {', '.join(known)}")
    texts = {name: rows.take(row, name, str, place) for name in known if name != "sample"}
    if texts["form"] not in FORMS:
        raise UserError(f"{place}: the field 'form' must be one of {', '.join(FORMS)}, not {texts['form']!r}")
    return Sample(**texts, sample=number)


def style_of(path: str) -> str | None:
    """Returns the prompt style of a run whose own file of samples this is; None for any other file."""
    settings = Path(path).with_name(SETTINGS)
    if Path(path).name != SAMPLES or not settings.exists():
        return None
    try:
        return json.loads(settings.read_text(encoding="utf-8"))["samples"]["prompt_style"]
    except (ValueError, LookupError, TypeError):
        # Of somebody else, who uses the same names.
        return None


def digest(path: str) -> str:
    """Returns a file's sha256, its first 12 digits, by name; raises UserError where there is no such file."""
    if not Path(path).is_file():
        raise UserError(f"--samples: {path}: there is no such file; check the path")
    with Path(path).open("rb") as file:
        return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


@contextlib.contextmanager
def alone(folder: Path, *, rescore: bool) -> Iterator[None]:
    """Keeps other runs out of a folder, which is made if there is none.

    Raises:
        UserError: another run works in it. Or there is nothing to judge with `rescore`.
    """
    if rescore and not (folder / SETTINGS).exists():
        raise UserError(f"{folder} holds no samples to judge: run the command without --score-only first")
    folder.mkdir(parents=True, exist_ok=True)
    with held(
        folder / LOCK, f"{folder}: another `iterpref eval` works here; wait for it, stop it, or give another --out"
    ):
        yield


def settle(folder: Path, settings: dict[str, Any], *, rescore: bool) -> dict[str, Any]:
    """Stores what a run is made with, or compares it with what the folder was made with; returns it.

    `settings` has the parts `samples` and `scores`. With `rescore` other scoring settings replace those that are
    stored, the verdicts and what was made of them are dropped, and the model is the one that is stored; verdicts of the
    same settings without results are those of a run that was stopped, which goes on.

    Raises:
        UserError: the folder holds samples, or scores, of other settings: the difference is named.
    """
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings))
    # A command that failed before its first sample is no reason to refuse the corrected one.
    if path.exists() and (rescore or _holds_rows(folder)):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if rescore:
            settings["samples"]["model"] = stored["samples"]["model"]
        _refuse_other(folder, stored["samples"], settings["samples"], "give another --out")
        if not rescore:
            advice = "give another --out, or --score-only to judge the stored samples anew"
            _refuse_other(folder, stored["scores"], settings["scores"], advice)
        elif stored["scores"] != settings["scores"] or (folder / RESULTS).exists():
            # Results last: without them the same command would take what is left of the verdicts for its own.
            for name in (VERDICTS, REFERENCES, PAGE, REPORT, RESULTS):
                (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    return settings


def _holds_rows(folder: Path) -> bool:
    return any(next(_rows(folder / name), None) is not None for name in (SAMPLES, VERDICTS, REFERENCES))


def _refuse_other(folder: Path, stored: dict[str, Any], now: dict[str, Any], advice: str) -> None:
    for name in sorted(stored.keys() | now.keys()):
        if stored.get(name) != now.get(name):
            raise UserError(
                f"{folder} was made with {name} = {_whole(stored.get(name))}, now it is {_whole(now.get(name))}; "
                + advice
            )


def _whole(value: Any) -> str:
    # Not cut: two models may differ in the last letters of a long path.
    return json.dumps(value, ensure_ascii=False)


def _row(item: Sample | Verdict) -> dict[str, Any]:
    if isinstance(item, Sample):
        return dataclasses.asdict(item)
    judged = item.judged
    return {
        "task_id": item.task_id,
        "sample": item.sample,
        "solution": item.solution,
        "tier": judged.tier,
        "outcomes": [dataclasses.asdict(outcome) for outcome in judged.outcomes],
    }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: no JSON ({error}); remove the line, it is made anew") from error

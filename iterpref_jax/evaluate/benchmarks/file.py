"""A benchmark's file: which published one it is, and its rows."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import types
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from iterpref_jax.codeflow import rows
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate.tasks import Benchmark, Limits, Task

# sha256 of the unpacked file -> (benchmark's names, version).
PUBLISHED = {
    "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2": (("humaneval",), "HumanEval"),
    "42526ec0e7d5f3ee0b06d6ced98f8c8bae3d76519151bfb3d36f79010645bd7f": (("humaneval+",), "HumanEval+ v0.1.10"),
    "04228b8a570ff7c346c740b91f0c6a0b323f86a26e903db8477c6f2d10f38819": (
        ("humaneval+",),
        "HumanEval+ v0.1.10 (OriginFmt)",
    ),
    "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f": (("mbpp", "mbpp-all"), "MBPP"),
    "b54e762755248ca411b523c917fa9f93c07b5ff2966bf60b3917b853926a3dad": (("mbpp+",), "MBPP+ v0.2.0"),
    "132d01c96df6b4b0fe0cbb8414092fe62c51b873b160d1ec8fc2ded28484865a": (("mbpp+",), "MBPP+ v0.2.0 (OriginFmt)"),
    "5e7a87ff1085eafb13b2d570277bcb53dba68201717b4fc987a3f2b86a23869c": (
        ("bigcodebench-hard",),
        "BigCodeBench-Hard v0.1.4",
    ),
    "aec951945feb555b4c72783519452a7a0437ca8c6e5624a83d0ae888718fa4ed": (("leetcode",), "LeetCodeDataset v0.3.1 test"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A file by its content (unpacked); `version` is "" for one that is not known."""

    name: str
    path: str
    sha256: str
    version: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Which tasks and which of their prompts: BigCodeBench's `split` (complete or instruct), LiveCodeBench's dates
    (`since` and `until`, both included, "" for any), the first `limit` tasks (0 for all)."""

    split: str
    since: str
    until: str
    limit: int
    shots: str


def find(name: str, path: rows.PathLike) -> Source:
    """Returns the file, named by its content. Raises UserError for none, or for another benchmark's."""
    sha256 = _sha256(path)
    names, version = PUBLISHED.get(sha256, ((), ""))
    if names and name not in names:
        raise UserError(f"{path} is {version}: use --benchmark={names[0]}, or give the file of {name}")
    return Source(name=name, path=str(path), sha256=sha256, version=version)


def read(source: Source, wanted: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields `(place, row)`; raises UserError for a row without one of the `wanted` columns, or twice the same task."""
    seen: dict[str, str] = {}
    for place, row in rows.read_rows(source.path, allow_nan=True):
        for column in wanted:
            if column not in row:
                raise UserError(
                    f"{place}: the column {column!r} is missing; is this the file of {source.name}? It has "
                    + ", ".join(row)
                )
        name = str(row[wanted[0]])
        if name in seen:
            raise UserError(f"{place}: the task {name!r} also stands at {seen[name]}")
        seen[name] = place
        yield place, row


def _sha256(path: rows.PathLike) -> str:
    # One and the same file is published packed by one and unpacked by others; gzip's header holds a time.
    try:
        with epath.Path(path).open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content: Any = gzip.GzipFile(fileobj=file) if packed else file
            # In parts: releases of several GB exist.
            return hashlib.file_digest(content, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise UserError(f"--data: {path}: there is no such file; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"--data: {path} is a folder; name the benchmark's file") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"--data: {path}: not a whole gzip file ({error}); was the copy interrupted?") from error


def benchmark_of(
    source: Source,
    tasks: Iterable[Task],
    *,
    stops: tuple[str, ...],
    max_new_tokens: int,
    clean: str,
    limits: Limits,
    exceptions: Mapping[str, str] = types.MappingProxyType({}),
) -> Benchmark:
    """Returns the benchmark whose tasks were read from `source`; the rest as in `Benchmark`."""
    return Benchmark(
        name=source.name,
        version=source.version,
        source=source.path,
        sha256=source.sha256,
        tasks=tuple(tasks),
        stops=stops,
        max_new_tokens=max_new_tokens,
        clean=clean,
        limits=limits,
        exceptions=dict(exceptions),
    )

"""Rows of JSON Lines, JSON, CSV and Parquet files, each with its place in the file for error messages."""

from __future__ import annotations

import collections
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, NoReturn

from etils import epath

from iterpref_jax.atomic import replacing
from iterpref_jax.errors import UserError, did_you_mean

PathLike = str | os.PathLike[str]
Row = dict[str, Any]
BytesFile = IO[bytes] | gzip.GzipFile

_LINE_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")
_TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t"}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NAMES = {str: "a string", bool: "true or false", dict: "an object", list: "a list"}


def read_rows(path: PathLike, *, allow_nan: bool = False) -> Iterator[tuple[str, Row]]:
    """Yields `(place, row)` for every row of a JSON Lines, JSON (one array), CSV or Parquet file; `.gz` is transparent.

    `place` is "FILE, line 3" (JSON Lines) or "FILE, row 3" (the others), counted from 1, and begins an error message.
    All values of a CSV file are strings, "" where a cell is empty. `allow_nan` takes NaN and Infinity, which are not
    JSON but stand in published benchmarks (MBPP+).

    Raises:
      UserError: no such file, not UTF-8, malformed or repeated JSON, a row that is not an object, no row at all.
    """
    readers = {"lines": _json_lines, "array": _json_array, "table": _table, "parquet": _parquet}
    empty = True
    for place, row in readers[_file_format(path)](path, allow_nan):
        if not isinstance(row, dict):
            raise UserError(f"{place}: every row must be a JSON object, not {shown(row)}")
        empty = False
        yield place, row
    if empty:
        raise UserError(f"{path}: the file holds no rows; was the step that wrote it stopped, or did it keep nothing?")


def write_rows(path: PathLike, rows: Iterable[Row]) -> int:
    """Writes JSON Lines (gzip for `.gz`), the same bytes for the same rows, and returns the number of rows.

    The file appears under its name only when it is complete: a reader never sees half of it.
    """
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with replacing(target) as partial, partial.open("wb") as raw, _encoder(target, raw) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            count += 1
    return count


def stem(path: PathLike) -> str:
    """Returns the file's name without `.gz` and without its format's suffix.

    >>> stem("runs/pairs.v2.jsonl.gz")
    'pairs.v2'
    """
    return epath.Path(epath.Path(path).name.removesuffix(".gz")).stem


def take(row: Row, name: str, wanted: type, place: str) -> Any:
    """Returns `row[name]`; raises UserError if it is absent or not of the type `wanted` (str, bool, dict or list)."""
    if name not in row:
        raise UserError(f"{place}: the field {name!r} is missing; wanted {_NAMES[wanted]}")
    value = row[name]
    if not isinstance(value, wanted):
        raise UserError(f"{place}: the field {name!r} must be {_NAMES[wanted]}, not {shown(value)}")
    return value


def refuse_unknown(row: Row, known: tuple[str, ...], place: str, advice: str) -> None:
    """Raises UserError for the first field of `row` that is not in `known`."""
    for name in row:
        if name not in known:
            raise UserError(f"{place}: unknown field {name!r}{did_you_mean(name, known)}; {advice}")


def shown(value: Any) -> str:
    """Returns a JSON value as an error message shows it, cut to 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _file_format(path: PathLike) -> str:
    name = epath.Path(path).name.removesuffix(".gz")
    with _opened(path) as file:
        start = file.read(4096)
    if start[:4] == b"PAR1" or name.endswith(".parquet"):
        return "parquet"
    if name.endswith(_LINE_SUFFIXES):
        return "lines"
    if name.endswith(tuple(_TABLE_SUFFIXES)):
        return "table"
    # `.json` files hold one array or one object per line, whatever the suffix promises.
    return "array" if start.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] == b"[" else "lines"


@contextlib.contextmanager
def _opened(path: PathLike) -> Iterator[BytesFile]:
    try:
        with epath.Path(path).open("rb") as raw:
            if str(path).endswith(".gz"):
                with gzip.GzipFile(fileobj=raw, mode="rb") as file:
                    yield file
            else:
                yield raw
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: this is a folder; name one file in it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); was the copy interrupted?") from error


@contextlib.contextmanager
def _encoder(target: epath.Path, raw: IO[bytes]) -> Iterator[BytesFile]:
    if not target.name.endswith(".gz"):
        yield raw
        return
    # gzip stores a name and a time by default: with both, equal rows would give different files.
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
        yield file


def _json_lines(path: PathLike, allow_nan: bool) -> Iterator[tuple[str, Any]]:
    with _opened(path) as file:
        # A binary file ends lines at \n only; text mode or splitlines would also cut at \r, \x85 or U+2028 in strings.
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if line.strip():
                yield place, _parse(line, place, allow_nan)


def _json_array(path: PathLike, allow_nan: bool) -> Iterator[tuple[str, Any]]:
    with _opened(path) as file:
        values = _parse(file.read().removeprefix(_BYTE_ORDER_MARK), str(path), allow_nan)
    for number, value in enumerate(values, start=1):
        yield f"{path}, row {number}", value


def _table(path: PathLike, allow_nan: bool) -> Iterator[tuple[str, Any]]:
    del allow_nan  # Cells are text.
    # The default limit, 128 KiB, is less than some programs; a C long is the most that the module takes.
    csv.field_size_limit(min(sys.maxsize, (1 << 31) - 1))
    delimiter = _TABLE_SUFFIXES[epath.Path(epath.Path(path).name.removesuffix(".gz")).suffix]
    with _opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        number = 0
        try:
            table = csv.DictReader(text, delimiter=delimiter, strict=True)
            if repeated := _repeated(table.fieldnames or ()):
                raise UserError(f"{path}: the first line names the column {repeated[0]!r} twice; rename or remove one")
            for number, row in enumerate(table, start=1):
                place = f"{path}, row {number}"
                if None in row or None in row.values():
                    raise UserError(f"{place}: it has more or fewer cells than the first line has names")
                yield place, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}, row {number + 1}: malformed CSV: {error}") from error


def _parquet(path: PathLike, allow_nan: bool) -> Iterator[tuple[str, Any]]:
    del allow_nan  # A NaN in a Parquet column is well-formed; it becomes text.
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow; run: pip install pyarrow") from error
    numbers = itertools.count(1)
    with _opened(path) as file:
        try:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                for row in batch.to_pylist():
                    yield f"{path}, row {next(numbers)}", _plain(row)
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a readable Parquet file: {error}") from error


def _plain(value: Any) -> Any:
    """Turns what JSON cannot hold (times, decimals, bytes, NaN) into its text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    is_finite = isinstance(value, float) and value - value == 0
    return value if is_finite else str(value)


def _parse(data: bytes, place: str, allow_nan: bool) -> Any:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 at byte {error.start} ({error.reason}); convert the file") from error
    try:
        value = json.loads(
            text, object_pairs_hook=_without_repeats, parse_constant=float if allow_nan else _no_constant
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: malformed JSON: {error}") from error
    if "\\ud" in text.lower():
        _refuse_surrogates(value, place)
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"the field {_repeated([name for name, _ in pairs])[0]!r} stands twice in one object")
    return row


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in collections.Counter(names).items() if count > 1]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null")


def _refuse_surrogates(value: Any, place: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise UserError(f"{place}: half of a surrogate pair ({half}) is not text; write the whole character") from error

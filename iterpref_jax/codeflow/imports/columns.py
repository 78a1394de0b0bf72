"""Columns by what they mean: each field has the names that data sets give it, and the user may name another."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from iterpref_jax.codeflow import rows
from iterpref_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a form and the column names that it is looked for under, the first one first; `a.b` is a field of
    the object `a`."""

    name: str
    aliases: tuple[str, ...]


class Columns:
    """Finds fields in rows. `renamed` maps a field to the user's column name, which is then the only one tried."""

    def __init__(self, fields: Iterable[Field], renamed: Mapping[str, str]):
        self._aliases = {field.name: field.aliases for field in fields}
        for name in renamed:
            if name not in self._aliases:
                known = ", ".join(self._aliases)
                raise UserError(
                    f"--column={name}={renamed[name]}: this form has no field {name!r}"
                    f"{did_you_mean(name, self._aliases)}; its fields are {known}"
                )
        self._renamed = renamed

    def value(self, row: rows.Row, name: str, place: str) -> Any:
        """Returns the first value that is not empty, or None."""
        return next(self._values(row, name, place), None)

    def text(self, row: rows.Row, name: str, place: str) -> str:
        """Returns a value as text, "" where there is none; numbers are names of tasks and users in many data sets."""
        # `task` is an object in some files, with the name of the task in it.
        value = next((found for found in self._values(row, name, place) if not isinstance(found, dict)), None)
        if value is None or isinstance(value, str):
            return value or ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        raise UserError(f"{place}: the field {name!r} must be a string, not {rows.shown(value)}")

    def _values(self, row: rows.Row, name: str, place: str) -> Iterator[Any]:
        if name in self._renamed:
            given = _given(row, self._renamed[name], f"{place}: --column={name}={self._renamed[name]}")
            found = [given]
        else:
            found = [_at(row, alias) for alias in self._aliases[name]]
        yield from (value for value in found if not _is_empty(value))

    def needed(self, row: rows.Row, name: str, place: str) -> str:
        """Returns a text that the form cannot do without."""
        text = self.text(row, name, place)
        if not text:
            wanted = self._renamed.get(name) or ", ".join(self._aliases[name])
            raise UserError(
                f"{place}: no value for the field {name!r}; looked for the columns {wanted}; there are "
                f"{', '.join(row) or 'none'}; name the right one with --column={name}=COLUMN"
            )
        return text

    def has(self, row: rows.Row, name: str) -> bool:
        """Whether the row has a value for the field, under any of its names."""
        return not _is_empty(self.value(row, name, ""))


def parsed(value: Any, place: str) -> Any:
    """Returns a list or an object as it is, and parses its JSON text, as which CSV and some Parquet files hold it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: wanted a list or an object, or its JSON text, not {rows.shown(value)}") from error


def _given(row: rows.Row, column: str, place: str) -> Any:
    if column.split(".")[0] not in row and column not in row:
        raise UserError(f"{place}: there is no such column{did_you_mean(column, row)}; there are {', '.join(row)}")
    return _at(row, column)


def _at(row: rows.Row, column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value == [] or value == {}

"""Values of a program as JSON that keeps Python's types apart. A part of the harness, and its counterpart outside.

None, bool, str, list, small int and finite float are themselves. Everything else is an object of one field, which
names the type: `{"tuple": [1, 2]}`. A value of a subclass (a defaultdict, an IntEnum) is written as its base's, read
by the base's own methods: what the subclass overrides is never asked. What has no type here is `opaque`, its type's
name alone.

Standard library only; no import of ours.
"""

from __future__ import annotations

import json

MAX_DEPTH = 100
SMALL = 1 << 63
# Keys that share a hash make sets and dicts quadratic: a trap for whoever reads them.
MAX_COLLISIONS = 256
ALL = slice(None)


class Opaque:
    """A value that only its own process can read; equal to nothing but itself."""

    def __init__(self, type_name: str):
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<{self.type_name}>"


class TooLarge(ValueError):
    """A value whose text would exceed its limit."""


def to_json(value, most_chars: int) -> str:
    """Returns `value` as one line of ASCII.

    Raises TooLarge above about `most_chars`, and ValueError for more than MAX_DEPTH containers in one another.
    """
    return json.dumps(_plain(value, MAX_DEPTH, [most_chars]), separators=(",", ":"))


def from_json(text: str) -> tuple[object, tuple[str, ...]]:
    """Returns the value of a text of `to_json`, and the type names of what is opaque in it.

    The text may be anybody's. Raises ValueError for what `to_json` does not write.
    """
    opaque: list[str] = []
    try:
        return _value(json.loads(text), MAX_DEPTH, opaque), tuple(opaque)
    except (AttributeError, OverflowError, RecursionError, TypeError) as error:
        raise ValueError(f"not a typed value: {type(error).__name__}: {error}") from None


def _plain(value, depth: int, room: list[int]):
    if not depth:
        raise ValueError(f"more than {MAX_DEPTH} containers in one another")
    room[0] -= 4
    if room[0] < 0:
        raise TooLarge("the value is too large")
    if value is None or value is True or value is False:
        return value
    for base in type(value).__mro__:
        if base in _LEAVES:
            return _spend(_LEAVES[base](value), room)
        if base in _CONTAINERS:
            name, read = _CONTAINERS[base]
            items = [_plain(item, depth - 1, room) for item in read(value)]
            return {name: items} if name else items
        if base.__name__ == "generic" and base.__module__ == "numpy":
            return _plain(value.item(), depth - 1, room)
    return {"opaque": _name(type(value))}


def _spend(leaf, room: list[int]):
    text = next(iter(leaf.values())) if type(leaf) is dict else leaf
    room[0] -= len(text) if type(text) is str else 16
    if room[0] < 0:
        raise TooLarge("the value is too large")
    return leaf


def _name(cls: type) -> str:
    try:
        module = str(cls.__module__)
        return (cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}")[:200]
    except Exception:
        return "<unnamed>"


def _int(value) -> object:
    value = int.__pos__(value)
    return value if -SMALL < value < SMALL else {"int": hex(value)}


def _float(value) -> object:
    value = float.__pos__(value)
    return value if value - value == 0 else {"float": repr(value)}


def _complex(value) -> object:
    value = complex.__pos__(value)
    return {"complex": f"{value.real!r} {value.imag!r}"}


_LEAVES = {
    int: _int,
    float: _float,
    complex: _complex,
    str: str.__str__,
    bytes: lambda value: {"bytes": bytes.hex(value)},
    bytearray: lambda value: {"bytearray": bytearray.hex(value)},
}
_CONTAINERS = {
    list: ("", list.__iter__),
    tuple: ("tuple", tuple.__iter__),
    set: ("set", set.__iter__),
    frozenset: ("frozenset", frozenset.__iter__),
    dict: ("dict", lambda value: map(list, dict.items(value))),
}


def _value(plain, depth: int, opaque: list[str]):
    if not depth:
        raise ValueError(f"more than {MAX_DEPTH} containers in one another")
    if isinstance(plain, list):
        return [_value(item, depth - 1, opaque) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((name, content),) = plain.items()
    if name == "opaque":
        opaque.append(str(content))
        return Opaque(str(content))
    if name in _READ_LEAVES:
        return _READ_LEAVES[name](content)
    items = [_value(item, depth - 1, opaque) for item in content]
    if name == "tuple":
        return tuple(items)
    if name == "dict":
        check_keys(key for key, _ in items)
        return dict(items)
    if name not in ("set", "frozenset"):
        raise ValueError(f"not a typed value: {name[:100]!r}")
    check_keys(items)
    return set(items) if name == "set" else frozenset(items)


def check_keys(keys) -> None:
    """Raises ValueError for keys that would make a set of them slow, and TypeError for one that has no hash."""
    counts: dict[int, int] = {}
    for key in keys:
        code = hash(key)
        counts[code] = counts.get(code, 0) + 1
        if counts[code] > MAX_COLLISIONS:
            raise ValueError(f"more than {MAX_COLLISIONS} keys share a hash")


def _read_float(text: str) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(f"not a typed float: {text[:100]!r}")
    return float(text)


def _read_complex(text: str) -> complex:
    real, imaginary = text.split(" ")
    return complex(float(real), float(imaginary))


_READ_LEAVES = {
    "int": lambda text: int(text, 16),
    "float": _read_float,
    "complex": _read_complex,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
}

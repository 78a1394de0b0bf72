"""One GGUF file: its header, and tensors read by range and dequantised.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, counts, metadata key by key,
then name, dims (innermost first), type and offset of every tensor, then the aligned data. The `gguf` package knows the
types; its own reader takes long over a large vocabulary and keeps every token, so the header is read here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from iterpref_jax.errors import UserError

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
# Dequantising needs several times the memory of its result, so it goes by pieces of this many elements.
_PIECE = 1 << 18


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies, and how llama.cpp changed it on the way from Hugging Face's form.

    `kind` is ggml's number of its type. `permuted_heads` is the number of heads whose rows are interleaved (0 is none);
    `shift` was added to every number.
    """

    file: Path
    kind: int
    shape: tuple[int, ...]
    begin: int
    permuted_heads: int = 0
    shift: float = 0.0

    @property
    def dtype(self) -> str:
        """F32, which `elements` returns, or the name of a type that cannot be dequantised."""
        return "F32" if self.kind in _dequantised_kinds() else _gguf().GGMLQuantizationType(self.kind).name

    @property
    def nbytes(self) -> int:
        """The size of the tensor in the file."""
        per_block, block_bytes = self._block
        return math.prod(self.shape) // per_block * block_bytes

    @property
    def _block(self) -> tuple[int, int]:
        return _gguf().GGML_QUANT_SIZES[_gguf().GGMLQuantizationType(self.kind)]

    def elements(self, begin: int, end: int) -> np.ndarray:
        """Returns the elements [begin, end) of the tensor in Hugging Face's form, in C order, as float32."""
        head = math.prod(self.shape) // self.permuted_heads if self.permuted_heads else 1
        unit = math.lcm(self._block[0], head)
        first, last = begin // unit * unit, -(-end // unit) * unit
        values = self._dequantised(first, last)
        if self.permuted_heads:
            # llama.cpp keeps the two halves of a head's rotation side by side, Hugging Face one behind the other.
            rows = self.shape[0] // self.permuted_heads
            values = values.reshape(-1, rows // 2, 2, math.prod(self.shape[1:])).swapaxes(1, 2).reshape(-1)
        values = values[begin - first : end - first]
        return values - np.float32(self.shift) if self.shift else values

    def part(self, number: int) -> GgufTensor:
        """Returns the tensor that lies at `number` of the first dim."""
        size = self.nbytes // self.shape[0]
        return dataclasses.replace(self, shape=self.shape[1:], begin=self.begin + number * size)

    def _dequantised(self, begin: int, end: int) -> np.ndarray:
        per_block, block_bytes = self._block
        gguf, kind = _gguf(), _gguf().GGMLQuantizationType(self.kind)
        out = np.empty(end - begin, np.float32)
        for start in range(begin, end, _PIECE):
            stop = min(start + _PIECE, end)
            offset, size = start // per_block * block_bytes, (stop - start) // per_block * block_bytes
            raw = np.memmap(self.file, np.uint8, "r", self.begin + offset, (1, size)).view(np.ndarray)
            out[start - begin : stop - begin] = gguf.quants.dequantize(raw, kind).reshape(-1)
        return out


@dataclasses.dataclass(frozen=True)
class GgufHeader:
    """Metadata by key (an array of strings as its length) and tensors by name, in llama.cpp's names."""

    file: Path
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(file: Path) -> GgufHeader:
    """Returns the header of a GGUF file.

    Raises:
        UserError: not a GGUF file of version 2 or 3, a truncated one, or the `gguf` package is not installed.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        reader = _Reader(file, stream, size)
        if reader.take(4) != b"GGUF":
            raise UserError(f"{file} is no GGUF file: it does not begin with GGUF")
        version = reader.number("<I")
        if version not in _VERSIONS:
            raise UserError(f"{file} is GGUF of version {version}; versions 2 and 3 are read: convert the model again")
        tensors, keys = reader.number("<Q"), reader.number("<Q")
        fields = {}
        for _ in range(keys):
            key = reader.string()
            fields[key] = reader.value(reader.number("<I"))
        entries = [reader.entry() for _ in range(tensors)]
        align = fields.get("general.alignment", 32)
        data = -(-stream.tell() // align) * align
    found = {name: GgufTensor(file, kind, shape, data + offset) for name, kind, shape, offset in entries}
    known = {kind.value for kind in _gguf().GGMLQuantizationType}
    for name, tensor in found.items():
        if tensor.kind not in known:
            raise UserError(f"{file}: tensor {name} has type {tensor.kind}, which the gguf package does not know")
        if tensor.begin + tensor.nbytes > size:
            raise UserError(
                f"{file} is truncated: tensor {name} ends at byte {tensor.begin + tensor.nbytes} of {size}; "
                "download it again"
            )
    return GgufHeader(file, fields, found)


class _Reader:
    """Values of a GGUF header, one after the other."""

    def __init__(self, file: Path, stream: BinaryIO, size: int):
        self.file, self.stream, self.size = file, stream, size

    def take(self, count: int) -> bytes:
        data = self.stream.read(count) if count <= self.size else b""
        if len(data) < count:
            raise UserError(f"{self.file} is truncated or damaged in its header; download it again")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        return self.take(self.number("<Q")).decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise UserError(f"{self.file} is damaged: its metadata has a value of unknown type {kind}")
        number = self.number(_SCALARS[kind])
        # The shortest decimal number that is this float32: what was written, 1e-06 and not 9.999999974752427e-07.
        return float(str(np.float32(number))) if _SCALARS[kind] == "<f" else number

    def _array(self) -> Any:
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _STRING:
            for _ in range(count):
                self.take(self.number("<Q"))
            return count
        if kind in _SCALARS and count * struct.calcsize(_SCALARS[kind]) <= self.size:
            form = _SCALARS[kind]
            return list(struct.unpack(f"<{count}{form[1]}", self.take(count * struct.calcsize(form))))
        raise UserError(f"{self.file} is damaged: its metadata has an array of {count} values of type {kind}")

    def entry(self) -> tuple[str, int, tuple[int, ...], int]:
        name, dims = self.string(), self.number("<I")
        shape = tuple(reversed([self.number("<Q") for _ in range(dims)]))
        return name, self.number("<I"), shape, self.number("<Q")


@functools.cache
def _dequantised_kinds() -> frozenset[int]:
    """The types that `gguf` can dequantise."""
    gguf = _gguf()
    return frozenset(kind.value for kind in gguf.GGMLQuantizationType if _can_dequantise(gguf, kind))


def _can_dequantise(gguf: ModuleType, kind: Any) -> bool:
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (NotImplementedError, KeyError):
        return False
    return True


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise UserError("reading .gguf files needs the gguf package: pip install 'iterpref_jax[gguf]'") from error
    return gguf

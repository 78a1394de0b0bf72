"""One safetensors file: its header checked, tensors read by range, and written one tensor at a time.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data of
all tensors without gaps (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from iterpref_jax.errors import UserError

# The weights that can be trained. Other dtypes are read as far as their size, so that they can be named.
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
WORDS = {dtype.name: word for word, dtype in DTYPES.items()}
_OTHER_SIZES = {
    **dict.fromkeys("BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E4M3FNUZ F8_E5M2FNUZ F8_E8M0".split(), 1),
    **dict.fromkeys("U16 I16".split(), 2),
    **dict.fromkeys("U32 I32".split(), 4),
    **dict.fromkeys("U64 I64 F64 C64".split(), 8),
}
COPY_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: its file, dtype (in the format's words), shape, first byte and number of bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int

    def elements(self, begin: int, end: int) -> np.ndarray:
        """Returns the elements [begin, end) in C order: a map of these bytes only, which ends with the array.

        Pages of a map count as memory of the process, so a map of the whole tensor would count as a copy of it.
        """
        dtype = DTYPES[self.dtype]
        if begin == end:
            return np.empty(0, dtype)
        return np.memmap(self.file, dtype, "r", self.begin + begin * dtype.itemsize, (end - begin,)).view(np.ndarray)

    def raw(self) -> Iterator[bytes]:
        """Yields the stored bytes in blocks.

        Raises:
            UserError: the file has become shorter than its header said.
        """
        left = self.nbytes
        with self.file.open("rb") as stream:
            stream.seek(self.begin)
            while left:
                block = stream.read(min(left, COPY_BYTES))
                if not block:
                    raise UserError(f"{self.file} became shorter while it was read; download it again")
                left -= len(block)
                yield block


@dataclasses.dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: what the header says of it, and where its data will come from, block by block in C order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[np.ndarray | bytes]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of one file by name.

    Raises:
        UserError: the file is empty, truncated or damaged: its header is no header, or describes other bytes than are
            there (a tensor whose range is not shape x dtype, ranges that overlap or leave holes, another file size).
    """
    size = file.stat().st_size
    if size == 0:
        raise UserError(f"{file} is empty; download it again")
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise UserError(
                f"{file} is truncated or no safetensors file: its header should take {length} bytes, "
                f"the file has {size}; download it again"
            )
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise _damaged(file, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(file, f"its header is a JSON {type(header).__name__}, not an object")
    header.pop("__metadata__", None)
    ranges = {name: _checked(file, name, entry) for name, entry in header.items()}
    _check_ranges(file, ranges, size - 8 - length)
    return {
        name: StoredTensor(file, header[name]["dtype"], tuple(header[name]["shape"]), 8 + length + begin, end - begin)
        for name, (begin, end) in ranges.items()
    }


def write_file(file: Path, tensors: Sequence[PlannedTensor]) -> None:
    """Writes one safetensors file; each tensor's data is asked for when its turn comes, and dropped after it."""
    # Widest dtype first: readers view the data in place, so every tensor must be aligned to its dtype.
    tensors = sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)
    with file.open("wb") as stream:
        stream.write(_header(tensors))
        for tensor in tensors:
            begin = stream.tell()
            for block in tensor.blocks():
                stream.write(block if isinstance(block, bytes) else block.reshape(-1).view(np.uint8).data)
            if stream.tell() - begin != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {tensor.nbytes} bytes planned, {stream.tell() - begin} came")


def _header(tensors: Sequence[PlannedTensor]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    # Spaces keep the data aligned.
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def _checked(file: Path, name: str, entry: Any) -> tuple[int, int]:
    """Returns the byte range of one header entry, which must hold shape x dtype."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            all(type(n) is int and n >= 0 for n in shape) and 0 <= begin <= end
        ):
            itemsize = DTYPES[dtype].itemsize if dtype in DTYPES else _OTHER_SIZES.get(dtype)
        case _:
            raise _damaged(file, f"its header says {entry!r} of tensor {name}")
    if itemsize is not None and end - begin != math.prod(shape) * itemsize:
        raise _damaged(
            file, f"tensor {name} of shape {shape} and dtype {dtype} cannot lie in bytes [{begin}, {end}) of its data"
        )
    return begin, end


def _check_ranges(file: Path, ranges: dict[str, tuple[int, int]], size: int) -> None:
    end, before = 0, "the start"
    for name, (begin, next_end) in sorted(ranges.items(), key=lambda item: item[1]):
        if begin != end:
            what = "overlaps" if begin < end else f"leaves a hole of {begin - end} bytes after"
            raise _damaged(file, f"tensor {name} (from byte {begin}) {what} {before} (to byte {end})")
        end, before = next_end, f"tensor {name}"
    if end != size:
        raise _damaged(file, f"it has {size} bytes of data, its header describes {end}")


def _damaged(file: Path, why: str) -> UserError:
    return UserError(f"{file} is damaged: {why}; download it again")

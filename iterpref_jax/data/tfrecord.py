"""TFRecord framing with random access: every byte that is read is checked against its CRC.

A record is `uint64 length | uint32 masked crc32c of the length | payload | uint32 masked crc32c of the payload`, all
little endian (https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details).
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable, Iterator

import google_crc32c
from etils import epath

from iterpref_jax.errors import UserError

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
FRAME_BYTES = HEADER.size + FOOTER.size
MEND = "the file was cut or changed after it was written: copy it again from its source, or build the dataset anew"


def masked_crc(data: bytes) -> int:
    """Returns the masked CRC-32C of `data` as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """Returns `payload` with its header and footer; `len(payload) + FRAME_BYTES` bytes."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, FOOTER.pack(masked_crc(length)), payload, FOOTER.pack(masked_crc(payload))))


def write_records(path: epath.PathLike, payloads: Iterable[bytes]) -> tuple[list[int], list[int]]:
    """Writes one TFRecord file; returns where each record starts and how many payload bytes it has."""
    offsets, lengths, position = [], [], 0
    with epath.Path(path).open("wb") as out:
        for payload in payloads:
            out.write(frame(payload))
            offsets.append(position)
            lengths.append(len(payload))
            position += len(payload) + FRAME_BYTES
    return offsets, lengths


class RecordFile:
    """Random access to the records of one file; opened at the first read, picklable, safe to share between threads."""

    def __init__(self, path: epath.PathLike):
        self.path = os.fspath(path)
        self._local = "://" not in self.path
        self._lock = threading.Lock()
        self._handle = None

    def read(self, offset: int, length: int, *, record: int | None = None, crc: int | None = None) -> bytes:
        """Returns the payload of `length` bytes whose frame starts at byte `offset`.

        `record` is its number in the file, for messages only. `crc`, where given, is the masked CRC that an index
        holds: a sound record of another build is refused. Raises UserError for a cut, changed or other file.
        """
        data = self._read_bytes(offset, length + FRAME_BYTES)
        where = _place(self.path, record, offset)
        if len(data) < length + FRAME_BYTES:
            wanted = f"wanted {length + FRAME_BYTES} bytes, the file ends after {len(data)}"
            raise UserError(f"{where}: truncated: {wanted}; {MEND}")
        found = _checked_length(data[: HEADER.size], where)
        if found != length:
            raise UserError(
                f"{where}: the index says {length} bytes, the file {found}: they are not of one build; {MEND}"
            )
        payload = data[HEADER.size : -FOOTER.size]
        _check_payload(payload, data[-FOOTER.size :], where, crc)
        return payload

    def _read_bytes(self, offset: int, count: int) -> bytes:
        handle = self._opened()
        if self._local:
            return os.pread(handle.fileno(), count, offset)
        with self._lock:
            handle.seek(offset)
            return handle.read(count)

    def _opened(self):
        with self._lock:
            if self._handle is None:
                try:
                    # pread has no shared file position, so threads need no lock; other file systems have no pread.
                    self._handle = open(self.path, "rb", 0) if self._local else epath.Path(self.path).open("rb")  # noqa: SIM115
                except FileNotFoundError as error:
                    raise UserError(f"{self.path}: no such record file; {MEND}") from error
            return self._handle

    def close(self) -> None:
        """Closes the handle, if any; a later read opens it again."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                handle.close()

    def __getstate__(self):
        return self.path

    def __setstate__(self, path):
        self.__init__(path)


def iterate(path: epath.PathLike) -> Iterator[bytes]:
    """Yields the payloads of a file in order. Raises UserError that names the record where the file is not sound."""
    name, offset, record = os.fspath(path), 0, 0
    with epath.Path(path).open("rb") as source:
        while header := source.read(HEADER.size):
            where = _place(name, record, offset)
            length = _checked_length(header, where)
            data = source.read(length + FOOTER.size)
            if len(data) < length + FOOTER.size:
                raise UserError(f"{where}: truncated: {length} bytes announced, {len(data)} left; {MEND}")
            payload = data[: -FOOTER.size]
            _check_payload(payload, data[-FOOTER.size :], where, None)
            yield payload
            offset += length + FRAME_BYTES
            record += 1


def _place(path: str, record: int | None, offset: int) -> str:
    return f"{path}: record {'?' if record is None else record} at byte {offset}"


def _checked_length(header: bytes, where: str) -> int:
    if len(header) < HEADER.size:
        raise UserError(f"{where}: truncated inside the record's header; {MEND}")
    length, crc = HEADER.unpack(header)
    if crc != masked_crc(header[:8]):
        raise UserError(f"{where}: the record's length fails its checksum; {MEND}")
    return length


def _check_payload(payload: bytes, footer: bytes, where: str, crc: int | None) -> None:
    stored = FOOTER.unpack(footer)[0]
    if stored != masked_crc(payload):
        raise UserError(f"{where}: the payload ({len(payload)} bytes) fails its checksum; {MEND}")
    if crc is not None and crc != stored:
        raise UserError(f"{where}: a sound record, but not the one that was indexed; {MEND}")

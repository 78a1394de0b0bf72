"""TFRecord framing: round trips, random access, and every way in which a file can be damaged."""

from __future__ import annotations

import pickle
import struct
import threading

import google_crc32c
import pytest

from iterpref_jax.data import tfrecord
from iterpref_jax.errors import UserError

PAYLOADS = [b"first", b"", b"\x00" * 1000, bytes(range(256))]


def _write(tmp_path):
    path = tmp_path / "a.tfrecord"
    offsets, lengths = tfrecord.write_records(path, PAYLOADS)
    return path, offsets, lengths


def _change(path, position, xor=1):
    data = bytearray(path.read_bytes())
    data[position] ^= xor
    path.write_bytes(bytes(data))


def test_the_mask_is_the_one_of_the_format():
    # The TFRecord header of a 5-byte record, computed with the formula of the specification.
    crc = google_crc32c.value(struct.pack("<Q", 5))
    rotated = ((crc >> 15) | (crc << 17)) & 0xFFFFFFFF
    assert tfrecord.masked_crc(struct.pack("<Q", 5)) == (rotated + 0xA282EAD8) % 2**32


def test_the_crc_is_castagnoli():
    # "123456789" is the check value of every CRC catalogue: CRC-32C gives e3069283.
    assert google_crc32c.value(b"123456789") == 0xE3069283


def test_a_frame_is_length_crc_payload_crc():
    data = tfrecord.frame(b"abc")
    assert len(data) == 3 + 16
    assert data[:8] == b"\x03" + b"\x00" * 7
    assert data[12:15] == b"abc"


def test_records_come_back_in_any_order(tmp_path):
    path, offsets, lengths = _write(tmp_path)
    file = tfrecord.RecordFile(path)
    for i in (3, 0, 2, 1, 3):
        assert file.read(offsets[i], lengths[i]) == PAYLOADS[i]


def test_iteration_yields_all_payloads_in_order(tmp_path):
    assert list(tfrecord.iterate(_write(tmp_path)[0])) == PAYLOADS


def test_a_flipped_payload_bit_is_refused_by_name(tmp_path):
    path, offsets, lengths = _write(tmp_path)
    _change(path, offsets[2] + 12 + 500)
    with pytest.raises(UserError, match=rf"a\.tfrecord: record 2 at byte {offsets[2]}.*checksum"):
        tfrecord.RecordFile(path).read(offsets[2], lengths[2], record=2)
    with pytest.raises(UserError, match=f"record 2 at byte {offsets[2]}.*checksum"):
        list(tfrecord.iterate(path))


def test_every_single_flipped_bit_of_a_record_is_refused(tmp_path):
    path, offsets, lengths = _write(tmp_path)
    for position in range(offsets[1], offsets[1] + 16):
        _change(path, position, 0x10)
        with pytest.raises(UserError):
            tfrecord.RecordFile(path).read(offsets[1], lengths[1])
        _change(path, position, 0x10)
    assert tfrecord.RecordFile(path).read(offsets[1], lengths[1]) == b""


@pytest.mark.parametrize("cut", [1, 4, 200, 259, 271])
def test_a_truncated_file_is_refused_by_name(tmp_path, cut):
    path, offsets, lengths = _write(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=f"record 3 at byte {offsets[3]}: truncated"):
        tfrecord.RecordFile(path).read(offsets[3], lengths[3], record=3)
    with pytest.raises(UserError, match=r"record 3 at byte .*truncated"):
        list(tfrecord.iterate(path))


def test_a_place_beyond_the_file_is_refused(tmp_path):
    path, _, _ = _write(tmp_path)
    with pytest.raises(UserError, match="record 9 at byte 999999: truncated"):
        tfrecord.RecordFile(path).read(999_999, 10, record=9)


def test_a_length_other_than_the_stored_one_is_refused(tmp_path):
    path, offsets, lengths = _write(tmp_path)
    with pytest.raises(UserError, match="the index says 4 bytes, the file 5"):
        tfrecord.RecordFile(path).read(offsets[0], lengths[0] - 1, record=0)


def test_a_sound_record_with_another_crc_than_the_index_is_refused(tmp_path):
    path, offsets, lengths = _write(tmp_path)
    crc = tfrecord.masked_crc(PAYLOADS[0])
    file = tfrecord.RecordFile(path)
    assert file.read(offsets[0], lengths[0], crc=crc) == PAYLOADS[0]
    with pytest.raises(UserError, match="not the one that was indexed"):
        file.read(offsets[0], lengths[0], crc=crc ^ 1)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"none\.tfrecord: no such record file"):
        tfrecord.RecordFile(tmp_path / "none.tfrecord").read(0, 1)


def test_an_open_file_survives_pickling(tmp_path):
    path, offsets, lengths = _write(tmp_path)
    file = tfrecord.RecordFile(path)
    file.read(offsets[0], lengths[0])
    copy = pickle.loads(pickle.dumps(file))
    assert copy.read(offsets[3], lengths[3]) == PAYLOADS[3]


def test_threads_share_one_file(tmp_path):
    payloads = [bytes([i]) * (i + 1) for i in range(200)]
    offsets, lengths = tfrecord.write_records(tmp_path / "t", payloads)
    file, wrong = tfrecord.RecordFile(tmp_path / "t"), []

    def read_all():
        wrong.extend(i for i in range(200) if file.read(offsets[i], lengths[i]) != payloads[i])

    threads = [threading.Thread(target=read_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_file_is_usable_after_close(tmp_path):
    path, offsets, lengths = _write(tmp_path)
    file = tfrecord.RecordFile(path)
    file.read(offsets[0], lengths[0])
    file.close()
    assert file.read(offsets[0], lengths[0]) == PAYLOADS[0]

"""One safetensors file: what a damaged one is told, ranges, and what is written."""

import json

import numpy as np
import pytest
import safetensors.numpy

from iterpref_jax.errors import UserError
from iterpref_jax.models.safetensors_file import PlannedTensor, read_header, write_file


def write_raw(path, header, data):
    """A file with any header, written by hand."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def entry(begin, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{no json", b"", "its header is not JSON"),
        (b"[1]", b"", "its header is a JSON list"),
        (b'"\xff"', b"", "its header is not JSON"),
        ({"a": entry(0, 8)}, b"1234", "4 bytes of data, its header describes 8"),
        ({"a": entry(0, 8)}, b"1234567890ab", "12 bytes of data, its header describes 8"),
        ({"a": entry(0, 8, shape=[3])}, b"12345678", r"tensor a of shape \[3\] and dtype F32 cannot lie in .*0, 8"),
        ({"a": entry(0, 8, dtype="F16")}, b"12345678", r"tensor a of shape \[2\] and dtype F16 cannot lie"),
        ({"a": entry(0, 8, [8], "I8") | {"dtype": "I16"}}, b"12345678", "tensor a of shape .* dtype I16 cannot lie"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"1234567890ab", r"tensor b \(from byte 4\) overlaps tensor a"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, b"1234567890ab", "tensor b .* leaves a hole of 4 bytes after tensor a"),
        ({"a": entry(4, 8)}, b"12345678", "tensor a .* leaves a hole of 4 bytes after the start"),
        ({"a": entry(0, 4, shape=[-1])}, b"1234", "its header says .* of tensor a"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"1234", "its header says .* of tensor a"),
        ({"a": 3}, b"1234", "its header says 3 of tensor a"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong_in_it(tmp_path, header, data, message):
    path = write_raw(tmp_path / "weights.safetensors", header, data)
    with pytest.raises(UserError, match=rf"weights\.safetensors is damaged: .*{message}"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"1234", "truncated"), ((1 << 40).to_bytes(8, "little") + b"{}", "truncated")],
)
def test_a_file_without_room_for_its_header_is_named(tmp_path, content, message):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights\.safetensors .*{message}"):
        read_header(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_file_cut_anywhere_is_refused(tmp_path, kept):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({f"tensor{i}": np.zeros((8, 8), np.float32) for i in range(20)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        read_header(path)


def test_any_range_of_elements_is_read(tmp_path):
    wanted = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    tensors = {"a": np.ones(3, np.float16), "b": wanted, "c": np.zeros((0, 4), np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "weights.safetensors")
    header = read_header(tmp_path / "weights.safetensors")
    assert {name: tensor.shape for name, tensor in header.items()} == {"a": (3,), "b": (3, 4, 5), "c": (0, 4)}
    for begin, end in ((0, 60), (0, 1), (17, 41), (59, 60), (30, 30)):
        np.testing.assert_array_equal(header["b"].elements(begin, end), wanted.reshape(-1)[begin:end])
    assert b"".join(header["b"].raw()) == wanted.tobytes()
    assert header["c"].elements(0, 0).size == 0


def test_a_file_that_shrinks_while_it_is_copied_is_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(100, np.float32)}, path)
    tensor = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"weights\.safetensors became shorter"):
        list(tensor.raw())


def planned(name, array, pieces=3):
    words = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    return PlannedTensor(name, words[array.dtype.name], array.shape, lambda: np.array_split(array, pieces))


def test_written_files_read_as_the_library_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    # An odd number of two-byte numbers before four-byte ones: in this order the latter would not be aligned.
    arrays = {
        "half": rng.standard_normal((3, 5), np.float32).astype("bfloat16"),
        "full": rng.standard_normal((4, 2), np.float32),
        "other": rng.standard_normal(7, np.float32).astype(np.float16),
    }
    write_file(tmp_path / "weights.safetensors", [planned(name, array) for name, array in arrays.items()])
    read = safetensors.numpy.load_file(tmp_path / "weights.safetensors")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
        tensor = read_header(tmp_path / "weights.safetensors")[name]
        assert tensor.begin % array.dtype.itemsize == 0
    with safetensors.safe_open(tmp_path / "weights.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_tensor_is_made_only_after_the_one_before_it_was_written(tmp_path):
    path, sizes = tmp_path / "weights.safetensors", []

    def blocks():
        sizes.append(path.stat().st_size)
        yield np.zeros(1 << 16, np.float32)

    tensors = [PlannedTensor(f"t{i}", "F32", (1 << 16,), blocks) for i in range(4)]
    write_file(path, tensors)
    assert all(size >= number << 18 for number, size in enumerate(sizes))


def test_data_that_differ_from_the_plan_are_a_defect(tmp_path):
    wrong = PlannedTensor("a", "F32", (5,), lambda: [np.zeros(4, np.float32)])
    with pytest.raises(ValueError, match="a: 20 bytes planned, 16 came"):
        write_file(tmp_path / "weights.safetensors", [wrong])

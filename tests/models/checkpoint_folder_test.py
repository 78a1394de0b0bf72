"""What `model.path` may name, the files of a folder, and a hub: a real client against a small server of our own."""

import http.server
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy

from iterpref_jax.errors import UserError
from iterpref_jax.models.checkpoint_folder import INDEX, gguf_file, resolve, stored_tensors, weight_files


def write_shards(folder, shards, weight_map=None):
    """Shards {file: names of tensors} with an index that says so, or says `weight_map`."""
    folder.mkdir(exist_ok=True)
    for file, names in shards.items():
        safetensors.numpy.save_file({name: np.zeros(3, np.float32) for name in names}, folder / file)
    said = {name: file for file, names in shards.items() for name in names} if weight_map is None else weight_map
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": said}))
    return str(folder)


def test_tensors_come_from_all_files_of_the_index_without_old_buffers(tmp_path):
    write_shards(tmp_path, {"1.safetensors": ["a", "layers.0.rotary_emb.inv_freq"], "2.safetensors": ["b"]})
    assert stored_tensors(str(tmp_path)).keys() == {"a", "b"}


def test_all_disagreements_of_index_and_headers_are_listed_at_once(tmp_path):
    shards = {"1.safetensors": ["a", "b", "c"], "2.safetensors": ["d"]}
    folder = write_shards(tmp_path, shards, {"a": "1.safetensors", "b": "2.safetensors", "x": "1.safetensors"})
    with pytest.raises(UserError) as error:
        stored_tensors(folder)
    message = str(error.value)
    assert f"{tmp_path / INDEX} disagrees" in message
    for line in (
        "b is not in 2.safetensors, where the index has it",
        "x is not in 1.safetensors, where the index has it",
        "b is in 1.safetensors, but the index has it in 2.safetensors",
        "c is in 1.safetensors, but the index has it nowhere",
        "d is in 2.safetensors, but the index has it nowhere",
    ):
        assert line in message


def test_files_of_the_index_that_are_not_there_are_all_named(tmp_path):
    folder = write_shards(tmp_path, {"1.safetensors": ["a"]}, {"a": "1.safetensors", "b": "2.st", "c": "3.st"})
    with pytest.raises(UserError, match=r"names 2 file\(s\) that do not exist: 2\.st, 3\.st"):
        weight_files(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/hostname"])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, name):
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="do not exist: " + name):
        weight_files(write_shards(tmp_path / "model", {}, {"a": name}))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json is damaged"):
        weight_files(str(tmp_path))


def test_pickled_weights_alone_say_how_to_convert_them(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pytorch_model\.bin.*save_pretrained\(OUT, safe_serialization=True\)"):
        weight_files(str(tmp_path))


def test_shards_without_their_index_are_an_unfinished_download(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors, but neither .*download the rest"):
        weight_files(str(tmp_path))


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        weight_files(str(tmp_path))


def test_the_only_gguf_file_of_a_folder_is_its_weights(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert weight_files(str(tmp_path)) == [tmp_path / "m.gguf"]
    assert gguf_file(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"
    (tmp_path / "n.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"2 \.gguf files; name one: .*m\.gguf, .*n\.gguf"):
        gguf_file(str(tmp_path))
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    assert gguf_file(str(tmp_path)) is None


def test_a_local_folder_or_gguf_file_is_taken_as_it_is(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "m.txt").write_text("")
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert resolve(str(tmp_path / "m.gguf")) == str(tmp_path / "m.gguf")
    with pytest.raises(UserError, match=r"m\.txt is a file; name the folder"):
        resolve(str(tmp_path / "m.txt"))


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "a/b/c", "none/model.gguf", "Org/", "Org/Name/"])
def test_a_path_that_cannot_be_a_hub_name_is_not_looked_up(monkeypatch, path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=f"model.path={path} does not exist"):
        resolve(path)


def test_an_address_is_no_folder():
    with pytest.raises(UserError, match=r"gs://bucket/model.*must be a local or mounted folder"):
        resolve("gs://bucket/model")


COMMIT = "0123456789" * 4
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "tokenizer.model": b"pieces",
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"weights once more",
    "onnx/config.json": b"another config",
    "README.md": b"read me",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download of `Org/Name` needs."""

    def do_GET(self):
        if self.path.startswith("/api/models/Org/Name/revision/main"):
            siblings = [{"rfilename": name} for name in FILES]
            return self.answer(200, json.dumps({"id": "Org/Name", "sha": COMMIT, "siblings": siblings}).encode())
        if self.path.startswith(f"/api/models/Org/Name/tree/{COMMIT}"):
            tree = [{"type": "file", "path": name, "size": len(body), "oid": name} for name, body in FILES.items()]
            return self.answer(200, json.dumps(tree).encode())
        prefix = f"/Org/Name/resolve/{COMMIT}/"
        name = self.path.removeprefix(prefix)
        if self.path.startswith(prefix) and name in FILES:
            return self.answer(200, FILES[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
        return self.answer(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    do_HEAD = do_GET

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def resolve_elsewhere(path, folder, endpoint):
    """`resolve(path)` in a fresh process (the client reads its settings once); returns (ended well, last line)."""
    script = f"from iterpref_jax.models.checkpoint_folder import resolve; print(resolve({path!r}))"
    env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_XET": "1"}
    env |= {"PYTHONPATH": os.getcwd(), "NO_PROXY": "127.0.0.1"}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=folder, capture_output=True, text=True, check=False
    )
    return ended.returncode == 0, (ended.stdout if ended.returncode == 0 else ended.stderr).strip()


def test_a_hub_name_is_downloaded_without_second_copies_of_its_weights(hub, tmp_path):
    well, folder = resolve_elsewhere("Org/Name", tmp_path, hub)
    assert well, folder
    wanted = {"config.json", "model.safetensors", "tokenizer.model", "chat_template.jinja"}
    assert set(os.listdir(folder)) == wanted
    for name in wanted:
        with open(os.path.join(folder, name), "rb") as file:
            assert file.read() == FILES[name]


def test_what_was_downloaded_is_found_again_without_the_hub(hub, tmp_path):
    first = resolve_elsewhere("Org/Name", tmp_path, hub)
    assert resolve_elsewhere("Org/Name", tmp_path, "http://127.0.0.1:9") == first


@pytest.mark.parametrize(("reached", "why"), [(True, "RepositoryNotFound"), (False, "Connect")])
def test_a_name_that_is_neither_here_nor_on_the_hub_gives_both_reasons(hub, tmp_path, reached, why):
    well, message = resolve_elsewhere("Org/Other", tmp_path, hub if reached else "http://127.0.0.1:9")
    assert not well
    assert "UserError: model.path=Org/Other: there is no such folder, and it could not be had from the" in message
    assert why in message

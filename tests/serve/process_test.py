"""The whole command in a process of its own: a real model, a socket, a signal."""

import contextlib
import json
import re
import signal
import subprocess
import urllib.error
import urllib.request

import pytest

from tests.support.checkpoints import write_chat_model
from tests.support.runs import CONFIG, ROOT, command, environment, make_dataset, overrides, run_cli

BASE = f"--config={ROOT / 'configs' / 'base.py'}"
SHAPES = [
    "--config.decode.slots=2",
    "--config.decode.context=128",
    "--config.decode.chunk=4",
    "--config.model.compute.compute_dtype=float32",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("model") / "tiny-model")


@contextlib.contextmanager
def serving(*words, cache, **variables):
    """Yields (process, address, the line that it printed) of `iterpref serve` on a free port."""
    words = command("serve", "--port=0", *SHAPES, *words)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(words, env=environment(cache) | variables, cwd=ROOT, **pipes) as process:
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.match(r"(http://127\.0\.0\.1:\d+/v1) serves ", line):
                    yield process, found[1], line
                    return
            pytest.fail("".join(lines))
        finally:
            process.kill()


def post(address, path, **fields):
    body = json.dumps(fields).encode()
    return urllib.request.urlopen(urllib.request.Request(f"{address}/{path}", body), timeout=300)


def ended(process):
    """Sends SIGTERM; returns the status and the rest of what the process wrote."""
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    return process.wait(60), rest


def test_a_served_model_folder_streams_a_completion_and_ends_with_status_0_on_sigterm(folder, cache):
    with serving(BASE, f"--model={folder}", cache=cache) as (process, address, line):
        assert "'tiny-model'" in line
        assert "2 slots of 128 tokens" in line
        asked = {"model": "tiny-model", "prompt": "def add", "max_tokens": 9, "seed": 1}
        whole = json.load(post(address, "completions", **asked))["choices"][0]
        with post(address, "completions", **asked, stream=True) as stream:
            *events, last = stream.read().decode().strip().split("\n\n")
        chunks = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
        assert last == "data: [DONE]"
        assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
        assert chunks[-1]["finish_reason"] == whole["finish_reason"] in ("length", "stop")
        messages = [{"role": "user", "content": "add"}]
        chat = json.load(post(address, "chat/completions", model="tiny-model", messages=messages, max_tokens=3))
        assert chat["usage"]["completion_tokens"] <= 3
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(address, "completions", **asked | {"max_tokens": 1000})
        status, rest = ended(process)
    assert status == 0, rest
    assert "POST /v1/completions 400" in rest
    assert "SIGTERM: no new requests" in rest
    assert "Traceback" not in rest


@pytest.mark.slow
@pytest.mark.parametrize(("grace_s", "signals"), [(0, 1), (600, 2)])
def test_a_request_that_runs_is_cut_off_after_the_grace_or_by_a_second_signal(grace_s, signals, folder, cache):
    words = [BASE, f"--model={folder}", f"--config.serve.grace_s={grace_s}", "--served-model-name=m"]
    words += ["--config.decode.context=100000", "--config.decode.slots=1"]
    with serving(*words, cache=cache) as (process, address, _):
        # Greedy: random weights soon go round in a circle without an end of sequence.
        asked = {"model": "m", "prompt": "def", "max_tokens": 99_000, "temperature": 0}
        stream = post(address, "completions", **asked, stream=True)
        assert stream.readline().startswith(b"data: ")
        for _ in range(signals - 1):
            process.send_signal(signal.SIGINT)
            assert "SIGINT: no new requests" in process.stderr.readline()
        status, rest = ended(process)
        end = stream.read().decode()
    assert status == 0, rest
    assert "The server is shutting down" in end
    assert "[DONE]" not in end
    assert "Traceback" not in rest


@pytest.mark.slow
def test_a_checkpoint_of_a_run_is_served_as_the_folder_that_is_exported_from_it(tmp_path, cache):
    dataset, run, out = make_dataset(tmp_path), tmp_path / "run", tmp_path / "out"
    small = {"train.steps": 2, "train.checkpoint_every": 1, "optimizer.learning_rate": 0.01}
    run_cli("train", CONFIG, f"--workdir={run}", *overrides(dataset, **small), cache=cache)
    run_cli("export", f"--workdir={run}", f"--out={out}", cache=cache)

    def answer(*words):
        with serving(*words, "--served-model-name=m", cache=cache) as (_, address, _):
            asked = {"model": "m", "prompt": "def add(a", "max_tokens": 12, "temperature": 0, "logprobs": 0}
            return json.load(post(address, "completions", **asked))["choices"]

    newest, first = answer(CONFIG, f"--workdir={run}"), answer(CONFIG, f"--workdir={run}", "--step=1")
    assert newest == answer(BASE, f"--model={out}")
    assert newest != first

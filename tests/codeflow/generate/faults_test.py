"""`iterpref generate` when something fails under it: it ends soon and says why, and the next start loses nothing."""

import contextlib
import json
import os
import signal
import subprocess
import time

import pytest

from iterpref_jax.codeflow.endpoint import Ask, Sampling
from tests.codeflow.generate.run_test import command, contents, generate
from tests.support import llm_server, scripted_model
from tests.support.processes import below

TASKS = "--config.generate.tasks=6"
NO_TEXT = {"choices": [{"index": 0, "delta": {"content": None}, "finish_reason": "stop"}]}
GONE = {
    "401": (llm_server.refuse(401, "bad key"), r"(401): {url}: bad key; set the environment variable OPENAI_API_KEY"),
    "429": (llm_server.refuse(429, "later"), "has not answered for 1 s: {url} (429: later)"),
    "html": (llm_server.stream(b"<html>", kind="text/html"), "got text/html"),
    "null": (llm_server.stream(NO_TEXT, "[DONE]"), "the answer holds no text"),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with llm_server.serving(scripted_model.behave) as server:
        generate(server, out, TASKS)
        return contents(out), len(server.requests)


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", GONE)
def test_a_server_that_is_gone_for_good_ends_the_run_and_the_next_start_pays_only_what_is_missing(
    undisturbed, tmp_path, name
):
    whole, asked = undisturbed
    reply, said = GONE[name]

    def behave(request):
        return scripted_model.behave(request) if len(server.requests) <= 9 else reply

    with llm_server.serving(behave) as server:
        ended = generate(server, tmp_path, TASKS, "--config.endpoint.give_up_s=1", status=1)
        assert said.format(url=server.url) in ended
        refused = len(server.requests) - 9
        server.behave = scripted_model.behave
        generate(server, tmp_path, TASKS)
        assert len(server.requests) == refused + asked
    assert contents(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("size", ["200k", "600k"])
def test_a_full_disk_is_said_in_one_line_and_with_room_the_next_start_goes_on(undisturbed, tmp_path, size):
    whole, asked = undisturbed
    out = tmp_path / "out"
    with llm_server.serving(scripted_model.behave) as server, small_disk(out, size):
        said = generate(server, out, TASKS, status=1)
        assert "Traceback" not in said
        assert said.splitlines()[-1].startswith("iterpref generate: error: ")
        subprocess.run(["mount", "-o", "remount,size=20m", str(out)], check=True)
        generate(server, out, TASKS)
        # Those under way could not be kept.
        assert len(server.requests) <= asked + 4
        assert contents(out) == whole


def test_tasks_that_the_endpoint_failed_are_said_and_tried_again(tmp_path):
    asked = []

    def failing(request):
        if "Write the tests" in request.text:
            asked.append(request.text)
            if request.text != asked[0]:
                return llm_server.refuse(500)
        return scripted_model.behave(request)

    with llm_server.serving(failing) as server:
        words = (TASKS, "--config.endpoint.tries=2", "--config.endpoint.break_after=100")
        assert "5 tasks failed for the endpoint's or the sandbox's sake" in generate(server, tmp_path, *words)
        server.behave = scripted_model.behave
        assert "sake" not in generate(server, tmp_path, *words)


def test_a_round_of_more_features_that_the_endpoint_failed_ends_the_run_before_tasks_are_drawn(tmp_path):
    def failing(request):
        return llm_server.refuse(500) if "Extend this part" in request.text else scripted_model.behave(request)

    words = ("--config.generate.tasks=2", "--config.generate.evolve_rounds=1", "--config.endpoint.tries=2")
    with llm_server.serving(failing) as server:
        said = generate(server, tmp_path / "out", *words, "--config.endpoint.break_after=100", status=1)
        assert "generate.evolve_rounds: the endpoint failed round 0" in said
        assert all("Extend this part" in text for text in server.texts())
        server.behave = scripted_model.behave
        generate(server, tmp_path / "out", *words)
        generate(server, tmp_path / "undisturbed", *words)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_round_of_more_features_that_no_start_gets_answered_gives_nothing(tmp_path):
    def refusing(request):
        refused = llm_server.refuse(400, code="content_filter")
        return refused if "Extend this part" in request.text else scripted_model.behave(request)

    with llm_server.serving(refusing) as server:
        said = generate(server, tmp_path, "--config.generate.tasks=2", "--config.generate.evolve_rounds=1")
    assert "round 0 of growing the feature tree gave nothing" in said


def test_a_second_process_in_one_folder_is_refused_while_the_first_runs(tmp_path):
    with (
        llm_server.serving(lambda request: llm_server.hang()) as server,
        subprocess.Popen(command(server, tmp_path, TASKS), stderr=subprocess.DEVNULL) as running,
    ):
        while not server.requests:
            assert running.poll() is None
        said = generate(server, tmp_path, TASKS, status=1)
        running.kill()
    assert f"{tmp_path}/journal.sqlite: process {running.pid} on " in said


def test_a_program_that_was_cut_is_asked_again_even_if_it_parses(tmp_path):
    def cutting(request):
        if request.text.startswith("Solve this task"):
            number = scripted_model.number_of(request.text)
            return llm_server.say(f"```python\ndef add_{number}(a, b):\n    return a\n", finish_reason="length")
        if "could not be read" in request.text:
            assert "it is cut off (it was cut at max_tokens)" in request.text
            task = " ".join(message["content"] for message in request.body["messages"])
            return llm_server.say(scripted_model.program(scripted_model.number_of(task), ""))
        return scripted_model.behave(request)

    with llm_server.serving(cutting) as server:
        generate(server, tmp_path, TASKS)
        assert sum("could not be read" in text for text in server.texts()) == 6
    assert '"end": "passed_first"' in (tmp_path / "outcomes.jsonl").read_text()


def test_a_run_whose_every_task_the_endpoint_failed_ends_with_status_1_and_why(tmp_path):
    too_long = llm_server.refuse(400, "together more than 2048", code="context_length_exceeded")
    with llm_server.serving(lambda request: too_long) as server:
        said = generate(server, tmp_path, TASKS, status=1)
    assert "the endpoint failed every one of 6 tasks, the first with" in said
    assert "together more than 2048" in said
    assert json.loads((tmp_path / "report.json").read_text())["ends"] == {"ask_failed": 6}


def test_a_task_of_samples_ends_when_all_are_answered_and_names_the_first_that_failed(tmp_path):
    slow = dict(pieces=10, pause_s=0.1)
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=1, seed=7)
    of_samples = dict(sampling=sampling, purpose="solution", prompt_version="", prompt="")
    asks = [Ask(sample=sample, **of_samples) for sample in range(4)]
    samples = {ask.seed: ask.sample for ask in asks}
    task = {"task_id": "a", "instruction": "Write add_3(a, b).", "test_code": "assert add_3(0, 0) == 3"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task))

    def bad_first_and_third(request):
        good = llm_server.say(scripted_model.program(3, ""), **slow)
        bad = {0: llm_server.say("I cannot.", **slow), 2: llm_server.say("```python\ndef add(:\n```")}
        return bad.get(samples[request.body["seed"]], good)

    words = ("--from-samples=4", "--config.generate.seed=7", "--config.endpoint.reasks=0")
    with llm_server.serving(bad_first_and_third) as server:
        generate(server, tmp_path / "out", f"--tasks={tmp_path / 'tasks.jsonl'}", *words)
        assert len(server.requests) == 4
    row = json.loads((tmp_path / "out" / "outcomes.jsonl").read_text())
    assert (row["end"], row["detail"]) == ("malformed", "solution: there is no program in it: no code")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["spent"]["solution"]["calls"] == 4


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ("assert add_3(1, 1 == 5", "line 1: the field 'test_code' is no Python: '(' was never closed"),
        (
            "assert add_3(1, 1) == 5\nsys.exit(0)",
            "ends the process in its line 2 (sys.exit(0)), which no program passes",
        ),
    ],
)
def test_tests_of_a_tasks_file_that_no_program_can_pass_are_refused_before_anything_is_asked(tmp_path, tests, said):
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"task_id": "a", "instruction": "Add.", "test_code": tests}))
    with llm_server.serving(scripted_model.behave) as server:
        assert said in generate(server, tmp_path / "out", f"--tasks={tmp_path / 'tasks.jsonl'}", status=1)
        assert not server.requests


def endless(request):
    """Its programs take as long as they may."""
    number = scripted_model.number_of(request.text)
    if request.text.startswith("Solve this task"):
        return llm_server.say(f"```python\nimport time\ntime.sleep(60)\ndef add_{number}(a, b):\n    return a\n```")
    return scripted_model.behave(request)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_while_programs_run_and_leaves_none_of_them(tmp_path, number):
    words = (TASKS, "--config.sandbox.wall_s=60", "--config.sandbox.cpu_s=60")
    with llm_server.serving(endless) as server:
        running = subprocess.Popen(command(server, tmp_path, *words), stderr=subprocess.PIPE, text=True)
        while len(ran := below(running.pid)) < 2:
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(number)
        began = time.monotonic()
        _, said = running.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert (running.returncode, said.splitlines()[-1]) == (130, "iterpref generate: interrupted")
    assert not any(os.path.exists(f"/proc/{pid}") for pid in ran)

"""`iterpref generate` against a real server on loopback: what it makes, and that nothing is lost or paid twice."""

import collections
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iterpref_jax.codeflow import records
from iterpref_jax.codeflow.generate import prompts
from iterpref_jax.codeflow.generate.tasks import from_file
from iterpref_jax.errors import UserError
from tests.support import llm_server, scripted_model

FILES = ("features.json", "outcomes.jsonl", "trajectories.jsonl", "pairs.jsonl", "report.json", "report.md")
TASKS = 24


def command(server, out, *words):
    return [
        *(sys.executable, "-m", "iterpref_jax", "generate", "--config=configs/base.py", f"--out={out}"),
        *(f'--config.endpoint.base_urls=("{server.url}",)', "--config.endpoint.model=scripted"),
        # The scripted model's programs are our own.
        *("--config.sandbox.tier=rlimit", "--config.sandbox.allow_unsafe=True", f"--config.generate.tasks={TASKS}"),
        *("--config.endpoint.concurrency=4", "--config.endpoint.backoff_s=0.01", *words),
    ]


def generate(server, out, *words, status=0):
    ended = subprocess.run(command(server, out, *words), capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == status, ended.stderr
    return ended.stderr


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with llm_server.serving(scripted_model.behave) as server:
        generate(server, out)
        return out, [request.text for request in server.requests]


def test_a_run_debugs_until_the_tests_pass_and_keeps_failing_versions_with_the_final_one(undisturbed):
    out, _ = undisturbed
    found = list(records.read_trajectories(out / "trajectories.jsonl"))
    assert found
    for trajectory in found:
        *failing, final = trajectory.versions
        assert final.passed
        assert failing
        assert not any(version.passed for version in failing)
        assert failing[0].error_type in ("AssertionError", "NameError")
        assert trajectory.meta["test_coverage"] == 1.0
    assert {len(trajectory.versions) for trajectory in found} == {2, 3}


def test_pairs_are_judged_in_both_orders_and_name_their_judge(undisturbed):
    out, asked = undisturbed
    pairs = list(records.read_pairs(out / "pairs.jsonl"))
    version = prompts.load("", chat=True)["judge_pair"].version
    assert all(pair.meta["judge"] == {"model": "scripted", "prompt_version": version} for pair in pairs)
    for pair in pairs:
        orders = [text for text in asked if "differ in logic" in text and pair.chosen in text and pair.rejected in text]
        assert len(orders) == 2
        assert {text.index(pair.chosen) < text.index(pair.rejected) for text in orders} == {True, False}


def test_tests_are_frozen_and_the_model_that_writes_them_never_sees_a_body(undisturbed):
    out, asked = undisturbed
    about_tests = [text for text in asked if "Write the tests" in text]
    assert len(about_tests) == TASKS
    assert not any("return a" in text.split("interface:")[1] for text in about_tests)
    assert len({row["test_code"] for row in rows(out / "outcomes.jsonl")}) == TASKS


def test_the_report_counts_what_the_files_hold(undisturbed):
    out, asked = undisturbed
    report, outcomes = json.loads((out / "report.json").read_text()), rows(out / "outcomes.jsonl")
    assert report["ends"] == collections.Counter(row["end"] for row in outcomes)
    assert report["pairs"] == len(rows(out / "pairs.jsonl"))
    assert sum(total["calls"] for total in report["spent"].values()) == len(asked)
    rates = report["passed_at"]
    assert sum(rates.values()) == sum(row["final"] is not None for row in outcomes)
    page = (out / "report.md").read_text()
    assert f"{rates['0'] / TASKS:.1%}" in page
    assert all((out / "plots" / f"{name}.png").stat().st_size > 1000 for name in ("pass_rate", "ends", "calls"))


def test_the_same_command_again_asks_nothing_and_writes_the_same(undisturbed):
    out, _ = undisturbed
    before = contents(out)
    with llm_server.serving(scripted_model.behave) as server:
        said = generate(server, out)
        assert not server.requests
    assert f"{TASKS} of {TASKS} tasks were finished before" in said
    assert contents(out) == before


@pytest.mark.parametrize(
    "requests", [pytest.param(3, marks=pytest.mark.slow), 30, pytest.param(80, marks=pytest.mark.slow)]
)
def test_killed_at_any_point_and_started_again_it_ends_with_the_same_bytes(undisturbed, tmp_path, requests):
    whole, asked = undisturbed
    with llm_server.serving(scripted_model.behave) as server:
        running = subprocess.Popen(command(server, tmp_path), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(server.requests) < requests:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.wait()
        generate(server, tmp_path)
        # Those under way when it died, at most as many as run at a time, are the only ones asked again.
        assert len(server.requests) <= len(asked) + 4
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_sigterm_ends_it_with_what_was_paid_in_the_journal(undisturbed, tmp_path):
    whole, asked = undisturbed
    with llm_server.serving(scripted_model.behave) as server:
        running = subprocess.Popen(command(server, tmp_path), stderr=subprocess.PIPE, text=True)
        while len(server.requests) < 20:
            time.sleep(0.005)
        running.terminate()
        _, said = running.communicate(timeout=30)
        assert running.returncode == 130, said
        generate(server, tmp_path)
        assert len(server.requests) <= len(asked) + 4
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_a_spent_budget_ends_the_run_with_files_and_more_budget_goes_on(undisturbed, tmp_path):
    whole, asked = undisturbed
    with llm_server.serving(scripted_model.behave) as server:
        said = generate(server, tmp_path, "--config.endpoint.max_calls=40", status=1)
        assert "max_calls" in said
        assert len(server.requests) <= 40
        assert 0 < json.loads((tmp_path / "report.json").read_text())["unfinished"] < TASKS
        generate(server, tmp_path)
        assert len(server.requests) == len(asked)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_faults_of_the_server_change_nothing_but_the_number_of_requests(undisturbed, tmp_path):
    whole, asked = undisturbed

    def faulty(request):
        if request.number == 0 and len(request.text) % 3 == 0:
            return llm_server.refuse(500)
        if request.number == 0 and len(request.text) % 3 == 1:
            return llm_server.cut(events=1)
        return scripted_model.behave(request)

    with llm_server.serving(faulty) as server:
        generate(server, tmp_path, "--config.endpoint.break_after=1000")
        assert len(server.requests) > len(asked)
    for name in ("outcomes.jsonl", "trajectories.jsonl", "pairs.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_an_answer_that_cannot_be_read_is_asked_again_once_and_then_drops_the_task(tmp_path):
    def mumbling(request):
        text = " ".join(message["content"] for message in request.body["messages"])
        if "Write the tests" in text:
            # A third needs the second question, a third has no answer at all.
            silent = {0: 0, 1: 1, 2: 9}[scripted_model.number_of(text) % 3]
            if len(request.body["messages"]) <= 2 * silent:
                return llm_server.say("I cannot.")
            return llm_server.say(scripted_model.tests(scripted_model.number_of(text)))
        return scripted_model.behave(request)

    with llm_server.serving(mumbling) as server:
        generate(server, tmp_path)
    for row in rows(tmp_path / "outcomes.jsonl"):
        dropped = scripted_model.number_of(row["instruction"]) % 3 == 2
        assert (row["end"] == "malformed") == dropped
        assert ("there is no program in it" in row["detail"]) == dropped


def test_samples_give_pairs_of_failing_programs_and_one_that_passes(tmp_path):
    with llm_server.serving(scripted_model.behave_by_seed) as server:
        generate(server, tmp_path, "--from-samples=6", "--config.generate.tasks=6")
        assert not any("it failed" in request.text for request in server.requests)
    found = list(records.read_trajectories(tmp_path / "trajectories.jsonl"))
    assert len(found) == 6
    # Equal programs are one version.
    assert all([version.passed for version in trajectory.versions] == [False, True] for trajectory in found)


def test_tasks_of_the_users_own_keep_their_tests_and_their_names(tmp_path):
    checks = "assert add_3(1, 1) == 5\nassert add_3(2, 1) == 6"
    own = [
        {"task_id": "mine/1", "instruction": "Write add_3(a, b).", "test_code": checks, "meta": {"task": "t"}},
        {"task_id": "mine/2", "instruction": "Write add_5(a, b), which returns a + b + 5."},
        {"task_id": "mine/3", "instruction": "Write add_4(a, b), which returns a + b + 4."},
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    with llm_server.serving(scripted_model.behave) as server:
        generate(server, tmp_path / "out", f"--tasks={tmp_path / 'tasks.jsonl'}")
        assert sum("Write the tests" in text for text in server.texts()) == 2
    ends = {row["task_id"]: row for row in rows(tmp_path / "out" / "outcomes.jsonl")}
    assert [ends[row["task_id"]]["end"] for row in own] == ["paired", "paired", "passed_first"]
    assert ends["mine/1"]["test_code"] == own[0]["test_code"]
    assert ends["mine/1"]["coverage"] is None


@pytest.mark.slow
def test_shards_merge_into_what_one_run_makes(undisturbed, tmp_path):
    whole, asked = undisturbed
    with llm_server.serving(scripted_model.behave) as server:
        for number in range(3):
            generate(server, tmp_path / str(number), f"--shard={number}/3")
        assert len(server.requests) == len(asked)
    merge = [sys.executable, "-m", "iterpref_jax", "merge", f"--out={tmp_path / 'all'}"]
    subprocess.run([*merge, *(str(tmp_path / str(number)) for number in (2, 0, 1))], check=True, capture_output=True)
    for name in ("outcomes.jsonl", "trajectories.jsonl", "pairs.jsonl", "report.json", "report.md"):
        assert (tmp_path / "all" / name).read_bytes() == (whole / name).read_bytes()
    missing = subprocess.run(
        [*merge, str(tmp_path / "0"), str(tmp_path / "2")], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1
    assert "shards are missing: 1/3" in missing.stderr


def test_features_grow_by_what_the_model_adds(tmp_path):
    with llm_server.serving(scripted_model.behave) as server:
        generate(server, tmp_path, "--config.generate.evolve_rounds=2", "--config.generate.tasks=2")
        assert sum("Extend this part" in text for text in server.texts()) == 2
    assert json.loads((tmp_path / "features.json").read_text())["text"]["parsing"]["emoji"] == 5


@pytest.mark.slow
def test_other_settings_in_one_folder_ask_what_they_touch_and_give_what_a_new_folder_gives(undisturbed, tmp_path):
    whole, _ = undisturbed
    files = ("outcomes.jsonl", "trajectories.jsonl", "pairs.jsonl")
    shutil.copytree(whole, tmp_path / "used")
    edited = (Path(prompts.__file__).parent / "prompts" / "repair.txt").read_text() + "\nThink well.\n"
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "repair.txt").write_text(edited)
    words = ("--config.generate.max_refinements=1", f"--config.generate.prompts={tmp_path / 'prompts'}")
    with llm_server.serving(scripted_model.behave) as server:
        generate(server, tmp_path / "used", *words)
        assert server.requests
        assert all("it failed" in request.text for request in server.requests)
        generate(server, tmp_path / "new", *words)
    for name in files:
        assert (tmp_path / "used" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()
        assert (tmp_path / "used" / name).read_bytes() != (whole / name).read_bytes()


def test_verdicts_are_those_of_the_limits_that_they_were_made_with(tmp_path):
    def late(request):
        if request.text.startswith("Solve this task"):
            number = scripted_model.number_of(request.text)
            code = f"import time\ntime.sleep(1)\ndef add_{number}(a, b):\n    return a - b + {number}\n"
            return llm_server.say(f"```python\n{code}```")
        return scripted_model.behave(request)

    found = []
    with llm_server.serving(late) as server:
        for seconds in (0.5, 10.0):
            generate(server, tmp_path, "--config.generate.tasks=1", f"--config.sandbox.wall_s={seconds}")
            (row,) = rows(tmp_path / "outcomes.jsonl")
            found.append(row["steps"][0]["error_type"])
    assert found == ["Timeout", "AssertionError"]


def test_a_program_that_comes_again_gets_another_draw_of_its_repair(tmp_path):
    def stubborn(request):
        if "it failed" in request.text and request.number < 2:
            return llm_server.say(scripted_model.program(scripted_model.number_of(request.text), "wrong"))
        return scripted_model.behave(request)

    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"task_id": "a", "instruction": "Write add_5(a, b), which returns a + b + 5."}) + "\n")
    with llm_server.serving(stubborn) as server:
        generate(server, tmp_path / "out", f"--tasks={tasks}")
        seeds = [request.body["seed"] for request in server.requests if "it failed" in request.text]
    assert len(seeds) == len(set(seeds)) == 3
    (row,) = rows(tmp_path / "out" / "outcomes.jsonl")
    assert (row["end"], row["final"]) == ("paired", 3)


def test_the_group_of_a_task_is_a_text(tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"task_id": "a", "instruction": "Add.", "meta": {"task": 5}}) + "\n")
    with pytest.raises(UserError, match="line 1: meta: the field 'task' must be a string"):
        list(from_file(tasks, "script"))

"""`iterpref rounds`: two rounds with real training, and what stops them."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers

from iterpref_jax import settings
from iterpref_jax.__main__ import main
from iterpref_jax.errors import UserError
from iterpref_jax.rounds import server
from iterpref_jax.rounds.run import Asked, RoundsSettings, as_markdown, server_command
from iterpref_jax.rounds.stages import Stages
from iterpref_jax.train.same_run import flat
from tests.support.checkpoints import write_chat_model
from tests.support.runs import ROOT, command, environment

SCRIPTED = f"{sys.executable} -m tests.support.scripted_model {{port}} {{model}} {{name}}"
SETTINGS = {
    "rounds.count": 2,
    "rounds.serve": SCRIPTED,
    "sandbox.tier": "rlimit",
    "sandbox.allow_unsafe": True,
    "generate.tasks": 24,
    "build.eval_fraction": 0.3,
    "build.workers": 0,
    "model.compute.compute_dtype": "float32",
    "rows.tokens": 512,
    "rows.rows_per_microbatch": 1,
    "train.global_batch": 2,
    "train.epochs": 0.0,
    "train.steps": 2,
    "train.checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("model") / "tiny-model")


def words(model, out, **changes):
    settings = SETTINGS | {"model.path": model, "build.text.tokenizer": model} | changes
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    return command("rounds", f"--config={ROOT / 'configs' / 'base.py'}", f"--out={out}", *flags)


def rounds(model, out, cache, **changes):
    pipes = dict(capture_output=True, text=True)
    return subprocess.run(words(model, out, **changes), env=environment(cache), cwd=ROOT, check=False, **pipes)


def is_running(pid):
    try:
        # One that nobody waits for is dead all the same.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_every_round_writes_with_the_model_of_the_one_before_and_stopped_ones_go_on(model, tmp_path, cache):
    out = tmp_path / "out"
    running = subprocess.Popen(words(model, out), env=environment(cache), cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (out / "round-001" / "train" / "config.json").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.terminate()
    assert running.wait(120) == 130
    assert not (out / "round-002").exists()

    ended = rounds(model, out, cache)
    assert ended.returncode == 0, ended.stderr
    assert "round 1 of 2: generate" not in ended.stderr
    lines = json.loads((out / "rounds.json").read_text())
    assert [line["from"] for line in lines] == [str(model), str(out / "round-001" / "model")]
    assert all(line["pairs"] > 2 and line["passed"] > line["passed_first"] for line in lines)
    first, second = ((out / name / "generation" / "pairs.jsonl").read_text() for name in ("round-001", "round-002"))
    assert not set(first.splitlines()) & set(second.splitlines())
    config = json.loads((out / "round-002" / "train" / "config.json").read_text())
    assert config["model"]["path"] == str(out / "round-001" / "model")
    if importlib.util.find_spec("torch"):
        transformers.AutoModelForCausalLM.from_pretrained(out / "round-002" / "model")

    again = rounds(model, out, cache)
    assert again.returncode == 0
    assert not re.search("round . of 2: (generate|build|train|export)", again.stderr)
    changed = rounds(model, out, cache, **{"generate.temperature": 0.5})
    assert changed.returncode == 1
    assert "the stage generate was done otherwise (generate.temperature: 0.8 before, 0.5 now)" in changed.stderr


@pytest.mark.slow
def test_a_model_that_writes_no_program_ends_the_round_with_what_to_do(model, tmp_path, cache):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"task_id": "a", "instruction": "Write f(x).", "test_code": "assert f(1) == 1"}) + "\n")
    changes = {"rounds.serve": "", "decode.slots": 2, "decode.context": 1024, "decode.chunk": 8}
    changes |= {"generate.max_tokens": 16, "endpoint.concurrency": 2}
    command_line = [*words(model, tmp_path / "out", **changes)]
    # Our own server answers; random weights write no Python.
    command_line[-1] = command_line[-1].replace("['rounds',", f"['rounds', '--tasks={tasks}',")
    ended = subprocess.run(command_line, env=environment(cache), cwd=ROOT, check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "no pair came out of this round" in ended.stderr
    report = json.loads((tmp_path / "out" / "round-001" / "generation" / "report.json").read_text())
    assert report["ends"].keys() <= {"malformed", "never_passed"}


def test_at_the_defaults_our_own_sampler_holds_every_answer_and_a_prompt_as_long():
    config = settings.load_config(str(ROOT / "configs" / "base.py"))
    assert config.decode.context >= 2 * config.generate.max_tokens


def test_answers_that_leave_no_room_for_a_prompt_are_refused_before_the_first_round(model, tmp_path, cache):
    ended = rounds(model, tmp_path / "out", cache, **{"rounds.serve": "", "decode.context": 2048})
    assert ended.returncode == 1
    assert "generate.max_tokens = 2048 leaves no room for a prompt in decode.context = 2048" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_a_server_that_ends_at_once_is_named_with_what_it_said(model, tmp_path, cache):
    broken = f"{sys.executable} -c 'import sys;sys.exit(\"no card {{port}} {{model}} {{name}}\")'"
    ended = rounds(model, tmp_path, cache, **{"rounds.serve": broken})
    assert ended.returncode == 1
    assert re.search("the server ended with status 1: no card", ended.stderr)
    shutil.rmtree(tmp_path)


VALUES = flat(settings.to_json(settings.load_config(str(ROOT / "configs" / "base.py"))))
WORDS = ["iterpref", "--config=c.py", "--config.rounds.count=2", "--in=x"]
STAGES = ("generate", "build", "train", "export")


@pytest.fixture
def done(tmp_path):
    """Opens the stages of a folder in which all have ended, with the settings of base.py but for these changes."""
    stages = Stages(tmp_path, "round 1 of 2", VALUES)
    for name in STAGES:
        stages.run(name, [*_touch(tmp_path / name), *WORDS], tmp_path / name)

    def opened(changes):
        assert changes.keys() <= VALUES.keys()
        return Stages(tmp_path, "round 1 of 2", VALUES | changes)

    return opened


def _touch(file):
    return [sys.executable, "-c", f"open({str(file)!r}, 'w')"]


def _undone(stages, tmp_path, words=WORDS):
    """The stages that are refused."""
    found = {}
    for name in STAGES:
        try:
            assert stages.is_done(name, [*_touch(tmp_path / name), *words])
        except UserError as error:
            found[name] = str(error)
    return found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds.count", 3),
        ("rounds.start_s", 9.0),
        ("sandbox.workers", 8),
        ("build.workers", 8),
        ("endpoint.budget_usd", 1.0),
        ("endpoint.max_calls", 10),
        ("endpoint.max_total_tokens", 10),
        ("endpoint.requests_per_minute", 10),
        ("endpoint.tokens_per_minute", 10),
        ("evaluate.n", 5),
        ("mesh.fsdp", 2),
    ],
)
def test_a_stage_is_done_whatever_the_settings_that_change_nothing_of_it(done, tmp_path, name, value):
    assert not _undone(done({name: value}), tmp_path)
    assert not _undone(done({}), tmp_path, ["iterpref", "--config=d.py", f"--config.{name}={value}", "--in=x"])


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("rounds.serve", "x", ["generate"]),
        ("sandbox.wall_s", 1.0, ["generate"]),
        ("endpoint.reasks", 7, ["generate"]),
        ("build.focus.mode", "token", ["generate", "build"]),
        ("optimizer.learning_rate", 1.0, ["train"]),
        ("model.compute.remat", "none", ["train"]),
        ("model.path", "other", ["generate", "train"]),
        ("seed", 7, ["train"]),
    ],
)
def test_a_stage_of_other_settings_is_refused_wherever_they_were_changed(done, tmp_path, name, value, refused):
    found = _undone(done({name: value}), tmp_path)
    assert list(found) == refused
    said = f"{name}: {json.dumps(VALUES[name])} before, {json.dumps(value)} now"
    assert all(said in error for error in found.values())


def test_a_stage_of_other_words_is_refused(done, tmp_path):
    found = _undone(done({}), tmp_path, [*WORDS, "--tasks=rounds.count=3"])
    assert list(found) == list(STAGES)
    assert all("done otherwise (--tasks=rounds.count=3)" in error for error in found.values())


def test_a_marker_of_words_alone_is_compared_by_its_words(done, tmp_path):
    marker = tmp_path / "done" / "train.json"
    marker.write_text(json.dumps([*_touch(tmp_path / "train"), *WORDS, "--config.train.steps=9"]))
    assert not _undone(done({"train.steps": 9}), tmp_path)
    assert list(_undone(done({}), tmp_path, [*WORDS, "--more"])) == list(STAGES)


def test_a_server_command_needs_all_places():
    with pytest.raises(UserError, match=r"lacks \{name\}"):
        RoundsSettings(count=1, serve="vllm serve {model} --port {port}", start_s=1.0)


def test_a_server_command_is_read_as_a_shell_reads_it():
    with pytest.raises(UserError, match="no command of a shell: No closing quotation"):
        RoundsSettings(count=1, serve="vllm 'serve {model} {port} {name}", start_s=1.0)


def test_a_server_is_started_with_braces_of_its_own_and_ends_with_its_processes(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(
        "import http.server, json, subprocess, sys\n"
        "below = subprocess.Popen(['sleep', '100'])\n"
        "open(sys.argv[3], 'w').write(json.dumps([below.pid, sys.argv[2]]))\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
    )
    said = tmp_path / "said"
    settings = RoundsSettings(
        count=1, serve=f"{sys.executable} {script} {{port}} '{{\"a\": 1}}' {{model}} {{name}}", start_s=30.0
    )
    port = server.free_port()
    words = server_command(str(said), port, Asked(words=(), settings={}, model="", seed=0, tasks=""), settings)
    with server.serving(words, port, tmp_path / "log", 30.0):
        below, braces = json.loads(said.read_text())
        assert braces == '{"a": 1}'
        assert is_running(below)
    deadline = time.monotonic() + 10
    while is_running(below):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_is_not_installed_is_named(tmp_path):
    with (
        pytest.raises(UserError, match="no-such-server: no such command"),
        server.serving(["no-such-server"], 1, tmp_path / "log", 1.0),
    ):
        pass


def test_the_table_gives_shares_of_judged_tasks():
    line = {"round": 1, "from": "base", "tasks": 10, "judged": 8, "passed_first": 2, "passed": 6, "pairs": 3}
    assert "| 1 | base | 10 | 25.0% | 75.0% | 3 |" in as_markdown([line])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config.objective.recipe=nope"], "nope"),
        (["--config.train.global_batch=0"], "global_batch"),
        (["--tasks=nowhere.jsonl"], "--tasks=nowhere.jsonl: there is no such file"),
        (["--config.generate.tasks=100"], "give at most 100 pairs a round (build.pairs.choose = 'random')"),
    ],
)
def test_what_would_end_a_round_behind_its_generation_ends_it_before(words, said, tmp_path, capsys):
    base = ["rounds", f"--config={ROOT / 'configs' / 'base.py'}", f"--out={tmp_path / 'out'}", "--config.model.path=m"]
    assert main([*base, *words]) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_stage_that_was_stopped_is_no_failure(tmp_path):
    stages = Stages(tmp_path, "round 1 of 1", {})
    for status in (75, 130):
        with pytest.raises(KeyboardInterrupt):
            stages.run("train", [sys.executable, "-c", f"raise SystemExit({status})"], tmp_path / "result")
    with pytest.raises(UserError, match="ended with status 3"):
        stages.run("train", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "result")


def test_a_stage_ends_with_a_process_that_is_killed_hard(tmp_path):
    (tmp_path / "stage.py").write_text(
        "import os, pathlib, time\n"
        "pathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\n"
        "time.sleep(100)\n"
    )
    code = (
        "import sys, pathlib\n"
        "from iterpref_jax.rounds.stages import Stages\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "Stages(folder, 'round 1', {}).run('train', [sys.executable, str(folder / 'stage.py')], folder / 'result')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while is_running(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)

"""`iterpref eval` and `iterpref compare`: a tiny model, an endpoint on loopback, stored samples, a killed run."""

import hashlib
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from iterpref_jax.__main__ import main
from iterpref_jax.cli import model as model_of_cli
from iterpref_jax.errors import UserError
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.transformer import init_params
from tests.data import tiny
from tests.support import llm_server
from tests.support.models import model_config
from tests.support.runs import ROOT, command, environment

CONFIG = f"--config={ROOT / 'configs' / 'base.py'}"
CODE = {f"t/{i}": f"def add_{i}(a, b):\n    return a + b + {i}\n" for i in range(3)}


@pytest.fixture
def tasks(tmp_path):
    rows = [
        {
            "task_id": name,
            "prompt": code.split("\n")[0] + "\n",
            "entry_point": code[4:9],
            "canonical_solution": code.split("\n", 1)[1],
            "test": f"def check(f):\n    assert f(1, 2) == {3 + i}\n",
        }
        for i, (name, code) in enumerate(CODE.items())
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluated(tasks, out, *words):
    return main(["eval", CONFIG, "--benchmark=humaneval", f"--data={tasks}", f"--out={out}", *map(str, words)])


def scores(out):
    found = json.loads((out / "results.json").read_text())
    return {f"{score['suite']}@{score['k']}": score["value"] for score in found["scores"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE).save_pretrained(folder)
    config = model_config(model_type="llama", vocab_size=512)
    params = init_params(config, 3, "float32")
    hf_checkpoint.save(str(folder), config, params, dtype="float32", copy_from=None, max_shard_gb=1)
    return folder


SHAPES = ("--config.decode.slots=8", "--config.decode.context=256", "--config.evaluate.max_new_tokens=8")


def test_a_model_is_asked_judged_and_not_asked_again(model, tasks, tmp_path, capsys):
    words = (f"--model={model}", "--n=2", "--temperature=0.8", *SHAPES)
    assert evaluated(tasks, tmp_path / "run", *words) == 0
    stored = (tmp_path / "run" / "samples.jsonl").read_bytes()
    assert len(stored.splitlines()) == 6
    assert scores(tmp_path / "run").keys() == {"base@1"}
    assert (tmp_path / "run" / "report.html").exists()
    capsys.readouterr()
    assert evaluated(tasks, tmp_path / "run", *words) == 0
    assert evaluated(tasks, tmp_path / "run", *words[1:], "--score-only") == 0
    assert "answers of" not in capsys.readouterr().err
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == stored


def test_a_chat_style_reaches_the_model_s_template(model, tasks, tmp_path):
    words = (f"--model={model}", "--prompt-style=evalplus-vllm", *SHAPES, "--config.decode.context=1024")
    assert evaluated(tasks, tmp_path / "run", *words) == 0
    assert "markdown code block" in (tmp_path / "run" / "report.html").read_text()


def test_a_task_that_does_not_fit_in_the_context_is_named_before_weights_are_read(model, tasks, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=lambda _, names: [name for name in names if name.endswith(".safetensors")])
    words = (*SHAPES, "--config.evaluate.max_new_tokens=250")
    assert evaluated(tasks, tmp_path / "run", f"--model={bare}", *words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert re.search("the prompt of task t/[0-2] has [0-9]+ tokens, an answer up to 250: together more than", said)


def behave(request):
    """Answers all but the last task as they should be; base prompts get the code that follows."""
    number = request.text.split("add_")[1][0]
    code = CODE[f"t/{number}"] if number != "2" else "def add_2(a, b):\n    return a\n"
    if "messages" in request.body:
        return llm_server.say(f"Here:\n```python\n{code}```")
    # Beyond the stop strings that a server takes.
    return llm_server.say(code.split("\n", 1)[1] + "\ndef main(\nprint('no")


@pytest.mark.parametrize("style", ["base", "evalplus-openai"])
def test_an_endpoint_is_asked_in_its_own_form(style, tasks, tmp_path):
    with llm_server.serving(behave) as server:
        words = (f"--config.endpoint.base_urls=('{server.url}',)", "--config.endpoint.model=tiny")
        assert evaluated(tasks, tmp_path / "run", "--endpoint", f"--prompt-style={style}", *words) == 0
    assert scores(tmp_path / "run") == {"base@1": pytest.approx(2 / 3)}
    assert {request.path for request in server.requests} == {llm_server.PROMPT if style == "base" else llm_server.CHAT}


def test_answers_of_another_run_are_cleaned_in_its_style_alone(tasks, tmp_path, capsys):
    with llm_server.serving(behave) as server:
        words = (f"--config.endpoint.base_urls=('{server.url}',)", "--config.endpoint.model=tiny")
        assert evaluated(tasks, tmp_path / "first", "--endpoint", "--prompt-style=evalplus-openai", *words) == 0
    given = f"--samples={tmp_path / 'first' / 'samples.jsonl'}"
    capsys.readouterr()
    assert evaluated(tasks, tmp_path / "again", given) == 1
    assert "of the style 'evalplus-openai'" in (said := capsys.readouterr().err)
    assert "not of 'base': give --prompt-style=evalplus-openai" in said
    assert evaluated(tasks, tmp_path / "again", given, "--prompt-style=evalplus-openai") == 0
    assert scores(tmp_path / "again") == scores(tmp_path / "first") == {"base@1": pytest.approx(2 / 3)}
    # Answers of no known origin, and samples that are no answers, go with any style.
    (tmp_path / "first" / "samples.jsonl").rename(tmp_path / "first" / "moved.jsonl")
    assert evaluated(tasks, tmp_path / "moved", f"--samples={tmp_path / 'first' / 'moved.jsonl'}") == 0
    assert evaluated(tasks, tmp_path / "best", "--samples=canonical") == 0
    solutions = f"--samples={tmp_path / 'best' / 'samples.jsonl'}"
    assert evaluated(tasks, tmp_path / "twice", solutions, "--prompt-style=evalplus-vllm") == 0


def test_stored_samples_are_judged_and_compared(tasks, tmp_path, capsys):
    rows = [{"task_id": name, "solution": code} for name, code in CODE.items()]
    rows[1]["solution"] = rows[1]["solution"].replace("+ b", "- b")
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluated(tasks, tmp_path / "given", f"--samples={tmp_path / 'given.jsonl'}") == 0
    assert evaluated(tasks, tmp_path / "best", "--samples=canonical") == 0
    assert (scores(tmp_path / "given")["base@1"], scores(tmp_path / "best")["base@1"]) == (pytest.approx(2 / 3), 1.0)
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "given"), str(tmp_path / "best"), f"--out={tmp_path / 'both'}"]) == 0
    assert "1 gained, 0 lost" in capsys.readouterr().err
    assert "t/1" in (tmp_path / "both" / "comparison.html").read_text()


@pytest.mark.parametrize("word", ["--data=nowhere.jsonl", "--config.sandbox.tier=bwarp", "--compat=heads"])
def test_what_cannot_be_judged_anew_keeps_its_verdicts(word, tasks, tmp_path):
    assert evaluated(tasks, tmp_path / "run", "--samples=canonical") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert evaluated(tasks, tmp_path / "run", "--samples=canonical", "--score-only", word) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("style", ["raw", "chat", "evalplus-openai"])
def test_the_page_of_stored_samples_shows_a_prompt_that_the_benchmark_has(style, tasks, tmp_path):
    assert evaluated(tasks, tmp_path / "run", "--samples=canonical", f"--prompt-style={style}") == 0
    page = (tmp_path / "run" / "report.html").read_text()
    prompt = re.sub(r"<[^>]*>", "", page.split("<h3>Prompt</h3>")[1].split("</pre>")[0])
    assert "def add_0(a, b):" in prompt
    assert ("markdown code block" in prompt) == (style == "evalplus-openai")


def test_a_file_of_samples_that_has_changed_is_refused(tasks, tmp_path, capsys):
    given = tmp_path / f"{'given' * 12}.jsonl"
    given.write_text("".join(json.dumps({"task_id": name, "solution": CODE[name]}) + "\n" for name in CODE))
    assert evaluated(tasks, tmp_path / "run", f"--samples={given}") == 0
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())["samples"]["model"]
    assert stored == f"samples {given} (sha256 {hashlib.sha256(given.read_bytes()).hexdigest()[:12]})"
    given.write_text(given.read_text().replace("+ b", "- b"))
    capsys.readouterr()
    assert evaluated(tasks, tmp_path / "run", f"--samples={given}") == 1
    now = hashlib.sha256(given.read_bytes()).hexdigest()[:12]
    assert f'was made with model = "{stored}", now it is "samples {given} (sha256 {now})"' in capsys.readouterr().err
    # The stored ones are judged, whatever became of their file.
    given.unlink()
    assert evaluated(tasks, tmp_path / "run", f"--samples={given}", "--score-only") == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["made_with"]["samples"]["model"] == stored
    assert scores(tmp_path / "run") == {"base@1": 1.0}


def test_the_best_checkpoint_is_fixed_by_its_number_when_a_run_starts(tasks, tmp_path, capsys, monkeypatch):
    run = tmp_path / "training"
    for step in (2, 4, 6):
        (run / "checkpoints" / str(step)).mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"train": {"keep_best": "loss"}}))
    lines = [{"step": step, "split": "eval", "loss": loss} for step, loss in ((2, 0.9), (4, 0.1), (6, 0.5))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    opened = []

    def refused(chosen, config, overrides):
        opened.append(chosen.step)
        raise UserError("not opened here")

    monkeypatch.setattr(model_of_cli, "open_model", refused)
    for step, number in (("best", 4), ("2", 2)):
        assert evaluated(tasks, tmp_path / step, f"--workdir={run}", f"--step={step}") == 1
        stored = json.loads((tmp_path / step / "settings.json").read_text())
        assert stored["samples"]["model"] == f"step {number} of {run}"
    assert opened == [4, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=NOWHERE"], "NOWHERE"),
        (["--model=NOWHERE", "--prompt-style=chat"], "has no prompt in the style 'chat'"),
        (["--samples=nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["--samples={part}"], "has no sample of 2 tasks"),
        (["--score-only"], "holds no samples to judge: run the command without --score-only first"),
    ],
)
def test_a_corrected_command_takes_the_folder_of_one_that_failed(words, message, tasks, tmp_path, capsys):
    part = tmp_path / "part.jsonl"
    part.write_text(json.dumps({"task_id": "t/0", "solution": "x = 1"}) + "\n")
    assert evaluated(tasks, tmp_path / "run", *(word.format(part=part) for word in words)) == 1
    assert message in capsys.readouterr().err
    # Only a model that cannot be opened is found out after the folder is made.
    assert (tmp_path / "run").exists() == (words == ["--model=NOWHERE"])
    assert evaluated(tasks, tmp_path / "run", "--samples=canonical") == 0
    assert scores(tmp_path / "run") == {"base@1": 1.0}


def test_a_run_that_is_killed_while_it_judges_goes_on(tasks, tmp_path):
    words = ["eval", CONFIG, "--benchmark=humaneval", f"--data={tasks}", f"--out={tmp_path / 'run'}"]
    slow = tmp_path / "slow.jsonl"
    late = "import time\ntime.sleep(1.5)\n"
    slow.write_text("".join(json.dumps({"task_id": name, "solution": late + CODE[name]}) + "\n" for name in CODE))
    words += [f"--samples={slow}", "--config.sandbox.workers=1"]
    killed = subprocess.Popen(command(*words), env=environment(tmp_path), cwd=ROOT, stderr=subprocess.DEVNULL)
    verdicts, end = tmp_path / "run" / "verdicts.jsonl", time.monotonic() + 60
    while not (verdicts.exists() and verdicts.read_bytes()) and time.monotonic() < end:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    first = verdicts.read_bytes()
    assert 0 < first.count(b"\n") < 3
    assert main(words) == 0
    assert verdicts.read_bytes().startswith(first[: first.rfind(b"\n") + 1])
    assert scores(tmp_path / "run") == {"base@1": 1.0}


def test_another_interpreter_is_stored_with_the_scores(tasks, tmp_path):
    python = f"--config.sandbox.python={sys.executable}"
    assert evaluated(tasks, tmp_path / "run", "--samples=canonical", python) == 0
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())["scores"]["python"]
    assert stored == f"{sys.executable} (Python {platform.python_version()})"
    assert evaluated(tasks, tmp_path / "run", "--samples=canonical") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples=canonical", "--config.sandbox.python=/nonexistent/python"], "'/nonexistent/python' is not a prog"),
        (["--samples=canonical", "--endpoint"], "leave --model, --workdir and --endpoint out"),
        (["--samples=canonical", "--config.evaluate.compat=heads"], "did you mean 'head'"),
        (["--prompt-style=chat", "--model=NOWHERE"], "humaneval has no prompt in the style 'chat'; it has base"),
        (["--samples=canonical", "--prompt-style=bass"], "'bass' is not known; did you mean 'base'"),
        ([], "there is no model: give --model=DIR"),
    ],
)
def test_what_cannot_work_is_refused(words, message, tasks, tmp_path, capsys):
    assert evaluated(tasks, tmp_path / "run", *words) == 1
    assert message in capsys.readouterr().err

"""The main job through the command line, as typed: tasks -> histories -> records -> two runs -> a checkpoint."""

import json

import pytest

from tests.support.runs import CONFIG, ROOT, overrides, run_cli

pytestmark = pytest.mark.slow

TASKS = [
    ("double", "a", "    b = a * 2\n    return b\n", "double(3) == 6 and double(-1) == -2"),
    ("larger", "a, b", "    if a > b:\n        return a\n    return b\n", "larger(1, 2) == 2 and larger(5, 2) == 5"),
    ("total", "xs", "    s = 0\n    for x in xs:\n        s = s + x\n    return s\n", "total([1, 2, 4]) == 7"),
    ("last", "xs", "    n = len(xs)\n    return xs[n - 1]\n", "last([4, 9]) == 9 and last('ab') == 'b'"),
    ("shout", "s", "    t = s.upper()\n    return t + '!'\n", "shout('a') == 'A!'"),
    ("count", "xs", "    n = 0\n    for x in xs:\n        n += bool(x)\n    return n\n", "count([0, 3, 4]) == 2"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with (folder / "tasks.jsonl").open("w") as tasks:
        for name, arguments, body, check in TASKS:
            row = {
                "task_id": name,
                "instruction": f"Write {name}({arguments}).",
                "code": f"def {name}({arguments}):\n{body}",
                "test_code": f"assert {check}\n",
            }
            tasks.write(json.dumps(row) + "\n")
    return folder


def test_from_tasks_to_a_checkpoint_that_starts_another_run(folder):
    cache = folder / "cache"
    histories, tokenizer, data = folder / "histories.jsonl", folder / "tokenizer", folder / "data"
    unsafe = "--config.sandbox.allow_unsafe=True"
    run_cli("inject", CONFIG, f"--source={folder / 'tasks.jsonl'}", f"--out={histories}", unsafe, cache=cache)
    versions = [json.loads(line)["versions"] for line in histories.read_text().splitlines()]
    assert all(v[-1]["passed"] and not any(w["passed"] for w in v[:-1]) for v in versions)

    train_tokenizer(histories, tokenizer)
    flags = [f"--config.build.text.tokenizer={tokenizer}", "--config.build.pairs.choose=all"]
    flags += ["--config.build.focus.empty=anchor", "--config.build.eval_fraction=0.4"]
    run_cli("build", CONFIG, *flags, f"--input={histories}", f"--out={data}", cache=cache)
    page = folder / "masks.html"
    run_cli("show", data, f"--html={page}", cache=cache)
    assert "Content-Security-Policy" in page.read_text()

    settings = overrides(data, **{"train.steps": 2})
    sft = ["--config.objective.recipe=sft", "--config.objective.nll_norm=token"]
    run_cli("train", CONFIG, *settings, *sft, f"--workdir={folder / 'sft'}", cache=cache)
    run_cli("export", f"--workdir={folder / 'sft'}", f"--out={folder / 'base'}", cache=cache)
    config = f"--config={ROOT / 'configs' / 'demo.py'}:stage=target_rpo"
    settings += [f"--config.model.path={folder / 'base'}", "--config.train.epochs=0"]
    run_cli("reference", config, *settings, f"--workdir={folder / 'rpo'}", cache=cache)
    done = run_cli("train", config, *settings, f"--workdir={folder / 'rpo'}", cache=cache)
    assert "reference log-probs: found" in done.stderr
    assert "| preference_loss | 0.6931 |" in (folder / "rpo" / "report.md").read_text()
    assert (folder / "rpo" / "logratios.png").stat().st_size > 1000


def train_tokenizer(histories, out):
    import subprocess
    import sys

    script = ROOT / "launch" / "train_tokenizer.py"
    subprocess.run([sys.executable, script, histories, "--out", out, "--vocab_size", "400"], check=True, cwd=ROOT)

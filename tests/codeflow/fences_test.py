"""Fenced blocks: Markdown's own rules, and programs that hold fences themselves."""

import pytest

from iterpref_jax.codeflow import fences

DOCSTRING = 'def f():\n    """Doubles.\n\n```python\nf()\n```\n    """\n    return 2\n'
BROKEN = DOCSTRING.replace("return 2", "return (")


def texts(text, spans):
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("", []),
        ("x\n", []),
        ("```\na\n```\n", ["a\n"]),
        ("```python\na\n", ["a\n"]),
        ("````\n```\na\n```\n````\nb\n", ["```\na\n```\n"]),
        ("~~~\n```\n~~~\n", ["```\n"]),
        ("```\na\n```\nx\n```\nb\n```\n", ["a\n", "b\n"]),
        ("- item\n    ```\n    a\n    ```\nb\n", ["    a\n"]),
        ("```inline``` text\nb\n", []),
        ("```\na\n```python\nb\n```\n", ["a\n```python\nb\n"]),
        ("```\r\na\r\n```\r\n", ["a\r\n"]),
    ],
)
def test_fenced_blocks_are_those_of_commonmark(text, blocks):
    assert texts(text, [block.inside for block in fences.blocks(text)]) == blocks


@pytest.mark.parametrize("program", [DOCSTRING, DOCSTRING.replace("```p", "    ```p"), "x = '''\n```\n'''\ny = 1\n"])
@pytest.mark.parametrize("language", ["", "python"])
def test_a_fence_in_a_string_of_a_fenced_program_ends_nothing(program, language):
    text = f"So:\n```{language}\n{program}```\nDone.\n```\nelse\n```\n"
    assert texts(text, fences.code_spans(text)) == [program, "else\n"]


@pytest.mark.parametrize(
    "program", [DOCSTRING, BROKEN, "x = '''\n```\n'''\ny = 1\n", '"""\n```\nf()\n```\n"""\nx = 1\n']
)
def test_a_fence_in_a_string_of_bare_code_opens_nothing(program):
    assert fences.code_spans(program) == [(0, len(program))]


def test_prose_that_speaks_of_quotes_hides_no_block():
    text = 'Use three quotes (""") for it:\n```python\nx = 1\n```\n'
    assert texts(text, fences.code_spans(text)) == ["x = 1\n"]


@pytest.mark.parametrize("info", ["", "python", "py title=x"])
def test_a_block_that_the_prompt_leaves_open_goes_on_in_the_answer(info):
    prompt, answer = f"Go on:\n```{info}\n", "x = 1\n```\nDone.\n```python\ny = 2\n```\nBye.\n"
    assert texts(answer, fences.code_spans(answer, prompt)) == ["x = 1\n", "y = 2\n"]
    assert texts("x = 1", fences.code_spans("x = 1", prompt)) == ["x = 1"]


def test_an_answer_that_opens_a_block_of_its_own_goes_on_none():
    answer = "Here:\n```python\nx = 1\n```\n"
    assert texts(answer, fences.code_spans(answer, "Mend this:\n```python\nx = (\n")) == ["x = 1\n"]
    assert texts(answer, fences.code_spans(answer, "Mend this:\n```python\nx = (\n```\n")) == ["x = 1\n"]


def test_the_code_of_a_block_in_a_list_has_no_indentation_of_the_list():
    [block] = fences.blocks("1. So:\n\n   ```Python\n   if x:\n       y\n   ```\n")
    assert (block.language, block.code, block.closed) == ("python", "if x:\n    y\n", True)


def test_only_the_last_block_may_be_open():
    assert fences.open_block("```\na\n```\n") is None
    block = fences.open_block("```\na\n```\nthen\n  ~~~py\n  b\n")
    assert block is not None
    assert (block.start, block.code) == (15, "b\n")

"""From answers to values: what is taken, and what the model is told about the rest."""

import ast

import pytest

from iterpref_jax.codeflow.generate import answers

CODE = '''
import os
LIMIT: int = 3

class Box:
    """Holds."""
    size = 1
    def get(self, n: int = 2) -> int:
        return n
    def _own(self):
        pass

async def load(x):
    return x
'''


def test_the_interface_is_signatures_and_docstrings_without_bodies():
    said = answers.interface(CODE)
    tree = ast.parse(said)
    assert [type(node).__name__ for node in tree.body] == ["AnnAssign", "ClassDef", "AsyncFunctionDef"]
    assert "Holds." in said
    assert "def get(self, n: int=2) -> int" in said
    assert "return" not in said
    assert "_own" not in said


def test_the_interface_of_a_broken_program_is_the_lines_that_begin_definitions():
    assert answers.interface("def f(x):\n    return (\nclass A:\n    pass") == "def f(x):\nclass A:"


def test_tests_must_parse_check_enough_and_leave_the_programs_names_alone():
    parse = answers.test_writer("def f(x):\n    return x\n", 2, "script")
    assert parse("```python\nassert f(1) == 1\nassert f(2) == 2\n```") == "assert f(1) == 1\nassert f(2) == 2\n"
    with pytest.raises(ValueError, match="hold 1 checks; write at least 2"):
        parse("```python\nassert f(1) == 1\n```")
    with pytest.raises(ValueError, match="define f again"):
        parse("```python\ndef f(x):\n    return x\nassert f(1)\nassert f(2)\n```")
    with pytest.raises(ValueError, match="no Python"):
        parse("```python\nassert f(1 ==\n```")


def test_checks_are_counted_in_every_style():
    tree = ast.parse("assert x\nself.assertEqual(a, b)\nwith pytest.raises(E):\n    f()\nprint(assertion)")
    assert answers.count_checks(tree) == 3


def test_a_program_that_was_cut_off_is_no_program_but_a_wrong_one_is():
    with pytest.raises(ValueError, match="cut off"):
        answers.program("```python\ndef f(x):\n    return (x +")
    assert answers.program("```python\ndef f(x) return x\n```") == "def f(x) return x\n"


@pytest.mark.parametrize("text", ["no tags", "<task> </task>", "<task>" + "x" * 9000 + "</task>"])
def test_an_instruction_must_stand_between_tags_and_be_of_a_size(text):
    with pytest.raises(ValueError, match=r"no task|characters"):
        answers.instruction(text)


def test_of_several_tasks_the_last_counts():
    assert answers.instruction("<task>draft</task> better: <task>\nfinal\n</task>") == "final"


@pytest.mark.parametrize("score", ["0", "6", "true", "4.5", '"5"', "null"])
def test_a_score_is_a_whole_number_from_one_to_five(score):
    with pytest.raises(ValueError, match="whole number from 1 to 5"):
        answers.scores('{"correctness": 5, "completeness": 5, "consistency": ' + score + "}")


def test_judgements_are_read_out_of_prose():
    assert answers.differ('I think {"differ_in_logic": false, "reason": "names"} is right.') is False
    with pytest.raises(ValueError, match="must be true or false"):
        answers.differ('{"differ_in_logic": "yes"}')
    with pytest.raises(ValueError, match="no JSON object"):
        answers.differ("[1]")


def test_fields_without_a_value_stand_in_the_interface_because_a_constructor_takes_them():
    said = answers.interface("@dataclass\nclass Point:\n    x: int\n    y: int = 0\n")
    assert said == "@dataclass\nclass Point:\n    x: int\n    y: int = ..."


@pytest.mark.parametrize("code", ["x = " + "-" * 100_000 + "1", "def f(a=" + "+".join("1" * 5000) + "):\n    return a"])
def test_programs_too_deep_for_the_parser_are_wrong_answers_and_no_fault_of_ours(code):
    assert answers.interface("def g():\n    pass\n" + code).startswith("def g():")
    with pytest.raises(ValueError, match=r"no Python: it is nested too deeply|hold 0 checks"):
        answers.test_writer("def g():\n    pass\n", 1, "script")(f"```python\n{code}\n```")


def test_an_interface_can_be_sent_whatever_a_docstring_holds():
    assert answers.interface("def f():\n    '\\ud800'\n").encode()


@pytest.mark.parametrize(
    ("style", "tests", "line"),
    [
        ("script", "assert f(1)\nsys.exit(0)\n", 2),
        ("script", "assert f(1)\nif __name__ == '__main__':\n    sys.exit(main())\n", 3),
        ("script", "for n in range(3):\n    assert f(n)\nraise SystemExit(0)\n", 3),
        ("unittest", "class T(unittest.TestCase):\n    pass\nunittest.main()\n", 3),
        ("pytest", "def test_f():\n    pass\nos._exit(0)\n", 3),
        ("unittest", "class T(unittest.TestCase):\n    pass\nif __name__ == '__main__':\n    unittest.main()\n", 0),
        ("script", "def main():\n    sys.exit(0)\nassert f(1)\n", 0),
        ("pytest", "with pytest.raises(SystemExit):\n    sys.exit(1)\n", 0),
        ("script", "try:\n    f()\n    raise SystemExit\nexcept SystemExit:\n    pass\n", 0),
    ],
)
def test_tests_that_end_the_process_are_told_by_the_line(style, tests, line):
    assert answers.ending_line(ast.parse(tests), style) == line
    if line:
        with pytest.raises(ValueError, match=f"end the process in line {line}"):
            answers.test_writer("def f(x):\n    return x\n", 1, style)(f"```python\n{tests}```")


@pytest.mark.parametrize(
    ("prompt", "text", "whole"),
    [
        ("solution", "```python\nx = 1\n```\nIt does", True),
        ("solution", "```python\nx = 1\n", False),
        ("solution", "x = 1\ny = 2", False),
        ("instruction", "<task>Add numbers.</task> It", True),
        ("instruction", "<task>Add numbers and", False),
    ],
)
def test_what_was_cut_at_max_tokens_counts_if_it_had_come_to_its_end(prompt, text, whole):
    if whole:
        answers.check_whole(prompt, text)
    else:
        with pytest.raises(ValueError, match="cut off"):
            answers.check_whole(prompt, text)

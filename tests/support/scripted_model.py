"""A model of a few lines: it writes a task about adding numbers, gets some wrong, and repairs most of these."""

import hashlib
import re
import signal
import sys

from tests.support import llm_server

CHECKS = ((1, 2), (0, 0), (-3, 3), (10, 5), (7, 7))


def number_of(text):
    """A number that is fixed by the task which the text is about, or by the whole text."""
    found = re.findall(r"add_(\d+)", text)
    return int(found[0]) if found else int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 10_000


def program(number, fault):
    body = {"": f"a + b + {number}", "wrong": f"a - b + {number}", "error": f"a + c + {number}"}[fault]
    return f"```python\ndef add_{number}(a: int, b: int) -> int:\n    '''Adds.'''\n    return {body}\n```"


def tests(number):
    lines = [f"assert add_{number}({a}, {b}) == {a + b + number}" for a, b in CHECKS]
    return "Here they are.\n```python\n" + "\n".join(lines) + "\n```"


def answer(text, sample):
    """What it says to a prompt; of tasks with odd numbers the first program is wrong, a tenth is never repaired."""
    number = number_of(text)
    if "between <task> and </task>" in text:
        return f"<task>\nWrite add_{number}(a, b), which returns a + b + {number}.\n</task>"
    if "Write the tests" in text:
        return tests(number)
    if "it failed" in text:
        again = "NameError" in text
        return program(number, "wrong" if number % 10 == 9 or again else "")
    if text.startswith("Solve this task"):
        wrong = sample % 2 if sample is not None else number % 2
        return program(number, ("error" if number % 4 == 3 else "wrong") if wrong else "")
    if "Give three scores" in text:
        return '{"correctness": 5, "completeness": 4, "consistency": ' + ("2}" if number % 50 == 1 else "5}")
    if "differ in logic" in text:
        return '{"differ_in_logic": ' + ("false" if number % 30 == 5 else "true") + ', "reason": "an operator"}'
    if "Extend this part" in text:
        return '{"text": {"parsing": {"emoji": 5}}}'
    raise AssertionError(text)


def behave(request):
    return llm_server.say(answer(request.text, None))


def behave_by_seed(request):
    """Of several programs for one task, those with an odd seed are wrong."""
    return llm_server.say(answer(request.text, request.body["seed"]))


if __name__ == "__main__":
    # As a server command: `python -m tests.support.scripted_model PORT`.
    with llm_server.serving(behave, port=int(sys.argv[1])):
        signal.sigwait({signal.SIGTERM})

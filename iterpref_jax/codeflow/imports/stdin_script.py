"""Cases of standard input and output as a script of the sandbox: the program runs once a case, its streams redirected.

The program's text stands in a string, a line a line, so that line numbers in tracebacks are the program's.
"""

from __future__ import annotations

import json
from typing import Any

from iterpref_jax.codeflow.sandbox import Program

_DRIVER = """\
import io, os, sys
from decimal import Decimal, InvalidOperation


class Written(io.BytesIO):
    def close(self):
        pass  # What a program wrote is read after it has closed its output.


def run_program(text):
    with open("stdin.txt", "w") as file:
        file.write(text)
    fd = os.open("stdin.txt", os.O_RDONLY)
    if fd:  # `open(0).read()` closed it in the case before, so it is 0 already.
        os.dup2(fd, 0)
        os.close(fd)
    streams = sys.stdin, sys.stdout
    written = Written()
    sys.stdin, sys.stdout = open(0, closefd=False), io.TextIOWrapper(written, write_through=True)
    try:
        try:
            exec(compile(PROGRAM, "<code>", "exec", dont_inherit=True), {"__name__": "__main__"})
        except SystemExit as end:
            assert end.code in (None, 0), f"exit code {end.code}"
        sys.stdout.flush()
    finally:
        sys.stdin, sys.stdout = streams
    return written.getvalue().decode("utf-8", "backslashreplace")


def same_token(got, wanted):
    if got == wanted:
        return True
    try:
        return Decimal(got) == Decimal(wanted)
    except InvalidOperation:
        return False


def same_output(got, wanted):
    lines, others = ([line.split() for line in text.strip().splitlines()] for text in (got, wanted))
    return len(lines) == len(others) and all(
        len(line) == len(other) and all(map(same_token, line, other)) for line, other in zip(lines, others)
    )


for number, case in enumerate(CASES):
    got = run_program(case["input"])
    assert same_output(got, case["output"]), f"case {number}: wanted {case['output'][:200]!r}, got {got[:200]!r}"
"""


def stdin_program(code: str, cases: str) -> Program:
    """Returns the script that judges `code` by `cases`, the JSON text of a list of `{"input", "output"}`.

    A token that is not equal may be an equal number; white space at the ends of lines and of the output does not count.
    """
    lines = "\n".join(repr(f"{line}\n") for line in code.split("\n"))
    tests = f"CASES = {json.loads(cases)!r}\n{_DRIVER}"
    return Program(code=f"PROGRAM = ({lines}\n)\n", tests=tests, setup="", style="script")


def case_list(inputs: list[Any], outputs: list[Any]) -> list[dict[str, str]]:
    """Returns cases from two lists of texts; a list of lines is joined."""
    return [{"input": _lines(given), "output": _lines(wanted)} for given, wanted in zip(inputs, outputs, strict=True)]


def checks_something(cases: list[dict[str, str]]) -> bool:
    """Whether a program that prints nothing fails."""
    return any(case["output"].strip() for case in cases)


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)

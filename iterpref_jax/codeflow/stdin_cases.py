"""Cases of standard input and output as a text: JSON, a list of `{"input", "output"}`.

`Trajectory.test_code` and a `runs.Subject` hold it.
"""

from __future__ import annotations

import json
from typing import Any

from iterpref_jax.codeflow.sandbox import Case

# Of the sandbox's styles, the one whose tests are such a text.
STYLE = "stdin"


def text_of(inputs: list[Any], outputs: list[Any]) -> str:
    """Returns the cases of two lists of texts, "" if a program that prints nothing passes them; a list of lines is
    joined."""
    pairs = zip(map(_lines, inputs), map(_lines, outputs), strict=True)
    cases = [{"input": given, "output": wanted} for given, wanted in pairs]
    return json.dumps(cases, ensure_ascii=False) if any(case["output"].strip() for case in cases) else ""


def parse(text: str) -> tuple[Case, ...]:
    """Returns the cases as the sandbox takes them; raises ValueError for what `text_of` does not write."""
    try:
        cases = [(case["input"], case["output"]) for case in json.loads(text)]
    except (TypeError, KeyError) as error:
        raise ValueError(f"no list of objects with 'input' and 'output': {text[:60]!r}") from error
    if not cases or not all(isinstance(side, str) for case in cases for side in case):
        raise ValueError(f"inputs and outputs must be texts: {text[:60]!r}")
    return tuple(Case(inputs=given, expected=wanted) for given, wanted in cases)


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)

"""Implicit prompts: where a prompt ends that both completions begin with."""

import pytest

from iterpref_jax.codeflow import preferences


@pytest.mark.parametrize("indent", ["", "    "])
def test_an_implicit_prompt_never_reaches_into_an_open_code_block(indent):
    answer = "Add one.\nHere:\n{0}```python\n{0}def f(x):\n{0}    return x {1} 1\n{0}```"
    answers = [answer.format(indent, sign) for sign in "+-"]
    prompt, chosen, rejected = preferences.split_preference(
        dict(zip(("chosen", "rejected"), answers, strict=True)), "here"
    )
    assert prompt == "Add one.\nHere:\n"
    assert [prompt + chosen, prompt + rejected] == answers
    assert chosen.lstrip().startswith("```python\n")

"""Prompts: the package's own, edited copies, and what is refused."""

import pytest

from iterpref_jax.codeflow.endpoint import Answer, Sampling
from iterpref_jax.codeflow.generate import answers, prompts
from iterpref_jax.errors import UserError

SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=9)


@pytest.mark.parametrize("chat", [True, False])
def test_every_prompt_of_the_package_loads_and_uses_all_that_it_must(chat):
    loaded = prompts.load("", chat=chat)
    assert loaded.keys() == prompts.FIELDS.keys()
    for name, prompt in loaded.items():
        values = {field: f"<{field}>" for field in (*prompts.FIELDS[name], *prompts.MORE_FIELDS.get(name, ()))}
        ask = prompt.ask(values, SAMPLING, sample=0)
        said = ask.prompt or "\n".join(message["content"] for message in ask.messages)
        assert all(f"<{field}>" in said for field in prompts.FIELDS[name])


def test_values_are_put_in_as_they_are():
    system, user = prompts.load("", chat=True)["solution"].messages(instruction="print ${x} and $y for 5$")
    assert system["role"] == "system"
    assert "print ${x} and $y for 5$" in user["content"]


def test_an_edited_copy_takes_the_place_of_the_packages_own_and_has_another_version(tmp_path):
    (tmp_path / "solution.txt").write_text("Do ${instruction} for $$5.")
    own, edited = prompts.load("", chat=True), prompts.load(str(tmp_path), chat=True)
    assert edited["solution"].messages(instruction="it") == ({"role": "user", "content": "Do it for $5."},)
    assert edited["solution"].version != own["solution"].version
    assert edited["tests"].version == own["tests"].version


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("solutions.txt", "x", "did you mean 'solution'"),
        ("solution.md", "x", "no prompt has this name"),
        ("solution.txt", "no field", r"must use \$\{instruction\}"),
        ("solution.txt", "${instruction} ${instructoin}", r"knows no \$\{instructoin\}; did you mean 'instruction'"),
        ("solution.txt", "${instruction} for 5 $", r"write \$\$ for a dollar sign"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused_with_its_file(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        prompts.load(str(tmp_path), chat=True)
    assert name in str(refused.value)


def test_a_folder_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"generate\.prompts: 'nowhere' is not a folder"):
        prompts.load("nowhere", chat=True)


def answer(text, finish_reason="stop"):
    counts = dict(prompt_tokens=1, completion_tokens=1, cost=0.0, estimated=False)
    return Answer(text=text, finish_reason=finish_reason, model="m", **counts)


def test_a_base_model_goes_on_from_the_beginning_of_its_answer_up_to_its_end(tmp_path):
    (tmp_path / "solution.txt").write_text("For $$5: ${instruction}\n\n---\n```python\n---\n```\nTask\n")
    ask = prompts.load(str(tmp_path), chat=False)["solution"].ask({"instruction": "it for $"}, SAMPLING, sample=2)
    assert ask.prompt == "For $5: it for $\n\n```python"
    assert ask.sampling.stop == ("```", "Task")
    assert (ask.sample, ask.purpose) == (2, "solution")


def test_answers_of_a_base_model_are_read_with_their_beginning_and_their_end():
    own = prompts.load("", chat=False)
    broken = own["solution"].whole(answer("\ndef f(:\n    return 1\n"))
    # It came to its end, so that what does not parse is a program to be debugged.
    assert answers.program(broken) == "def f(:\n    return 1\n"
    with pytest.raises(ValueError, match="cut off"):
        answers.program(own["solution"].whole(answer("\ndef f(:\n", "length")))
    assert answers.instruction(own["instruction"].whole(answer("\nWrite f."))) == "Write f."
    assert answers.differ(own["judge_pair"].whole(answer(' true, "reason": "an operator"}\n')))
    scores = own["score_tests"].whole(answer(' 5, "completeness": 2, "consistency": 4}\n'))
    assert answers.scores(scores) == {"correctness": 5, "completeness": 2, "consistency": 4}
    tree = own["evolve_features"].whole(answer('"text": {"parsing": {"csv": 20}}}\n'))
    assert answers.feature_tree(tree) == {"text": {"parsing": {"csv": 20}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${instruction}", "there are 1 parts"),
        ("system\n---\n${instruction}", r"solution\.txt: generate\.chat = False wants a text"),
        ("${instruction}\n---\n```\n---\n\n", "nothing ends the answer"),
        ("it\n---\n```\n---\n```\n", r"must use \$\{instruction\}"),
    ],
)
def test_a_base_prompt_without_its_three_parts_is_refused(tmp_path, text, message):
    (tmp_path / "solution.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        prompts.load(str(tmp_path), chat=False)

"""Prompts: the package's own, edited copies, and what is refused."""

import pytest

from iterpref_jax.codeflow.generate import prompts
from iterpref_jax.errors import UserError


def test_every_prompt_of_the_package_loads_and_uses_all_that_it_must():
    loaded = prompts.load("")
    assert loaded.keys() == prompts.FIELDS.keys()
    for name, prompt in loaded.items():
        values = {field: f"<{field}>" for field in (*prompts.FIELDS[name], *prompts.MORE_FIELDS.get(name, ()))}
        said = "\n".join(message["content"] for message in prompt.messages(**values))
        assert all(f"<{field}>" in said for field in prompts.FIELDS[name])


def test_values_are_put_in_as_they_are():
    system, user = prompts.load("")["solution"].messages(instruction="print ${x} and $y for 5$")
    assert system["role"] == "system"
    assert "print ${x} and $y for 5$" in user["content"]


def test_an_edited_copy_takes_the_place_of_the_packages_own_and_has_another_version(tmp_path):
    (tmp_path / "solution.txt").write_text("Do ${instruction} for $$5.")
    own, edited = prompts.load(""), prompts.load(str(tmp_path))
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
        prompts.load(str(tmp_path))
    assert name in str(refused.value)


def test_a_folder_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"generate\.prompts: 'nowhere' is not a folder"):
        prompts.load("nowhere")

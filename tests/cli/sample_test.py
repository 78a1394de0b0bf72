"""`iterpref sample`: completions of a file, continued after a stop, refused where they would mix."""

import json
import shutil

import pytest

from iterpref_jax.__main__ import main
from iterpref_jax.cli.model import OpenedModel
from iterpref_jax.data.text_rules import make_rules
from iterpref_jax.locks import held
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.transformer import init_params
from tests.data import tiny
from tests.support.models import model_config
from tests.support.runs import ROOT

FLAGS = ["--config.decode.slots=8", "--config.decode.context=64", "--config.decode.chunk=4", "--temperature=0.9"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE).save_pretrained(folder)
    config = model_config(model_type="llama", vocab_size=512)
    params = init_params(config, 3, "float32")
    hf_checkpoint.save(str(folder), config, params, dtype="float32", copy_from=None, max_shard_gb=1)
    return folder


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "def add(a, b):", "task_id": "a"}, {"prompt": "import os"}, {"prompt": "for i in"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def sample(model, prompts, out, *words):
    base = [
        "sample",
        f"--config={ROOT / 'configs' / 'base.py'}",
        f"--model={model}",
        f"--input={prompts}",
        f"--out={out}",
    ]
    return main([*base, *FLAGS, "--n=2", "--max_tokens=10", *words])


def rows_of(out):
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {(row["index"], row["sample"]): row for row in rows}


def test_every_prompt_has_its_completions_with_their_log_probs(model, prompts, tmp_path):
    assert sample(model, prompts, tmp_path / "out.jsonl") == 0
    found = rows_of(tmp_path / "out.jsonl")
    assert sorted(found) == [(i, n) for i in range(3) for n in range(2)]
    assert found[0, 1]["task_id"] == "a"
    for row in found.values():
        assert row["finish_reason"] in ("stop", "length")
        assert 1 <= row["tokens"] <= 10
        assert row["logprob"] < 0
    assert found[0, 0]["completion"] != found[0, 1]["completion"]


def test_a_stopped_job_goes_on_to_the_same_completions(model, prompts, tmp_path, monkeypatch):
    sample(model, prompts, tmp_path / "whole.jsonl")
    whole, part = (tmp_path / "whole.jsonl").read_text().splitlines(), tmp_path / "part.jsonl"
    # As a process leaves it that died while it wrote.
    part.write_text(whole[2] + "\n" + whole[0] + "\n" + whole[1][:20])
    assert sample(model, prompts, part) == 0
    assert rows_of(part) == rows_of(tmp_path / "whole.jsonl")


def test_characters_that_end_lines_elsewhere_are_text_in_prompts_and_in_completions(model, tmp_path):
    prompts, out, text = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl", "a\u2028b\u2029c\x85d"
    prompts.write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert sample(model, prompts, out) == 0
    first, _ = out.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    # As if a completion had held them, and the job had been stopped behind it.
    out.write_text(json.dumps({**json.loads(first), "completion": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert sample(model, prompts, out) == 0
    lines = out.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert [json.loads(line)["prompt"] for line in lines] == [text, text]
    assert json.loads(lines[0])["completion"] == text


def test_a_finished_job_samples_nothing_again(model, prompts, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    sample(model, prompts, out)
    before = out.read_bytes()
    monkeypatch.setattr(hf_checkpoint, "load", lambda *words: pytest.fail("the weights were read"))
    assert sample(model, prompts, out) == 0
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--temperature=0.5", "temperature was 0.9, is 0.5"),
        ("--seed=1", "seed was 0, is 1"),
        ("--max_tokens=9", "max_tokens was 10, is 9"),
        ("--chat", "chat was False, is True"),
    ],
)
def test_other_settings_are_not_mixed_into_a_file(model, prompts, tmp_path, change, said, capsys):
    sample(model, prompts, tmp_path / "out.jsonl")
    assert sample(model, prompts, tmp_path / "out.jsonl", change) == 1
    assert f"out.jsonl, line 1: {said}; write to another --out" in capsys.readouterr().err


def test_another_model_or_other_prompts_are_not_mixed_into_a_file(model, prompts, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    sample(model, prompts, out)
    shutil.copytree(model, tmp_path / "other")
    assert sample(tmp_path / "other", prompts, out) == 1
    assert f"model was '{model}', is '{tmp_path / 'other'}'" in capsys.readouterr().err
    prompts.write_text('{"prompt": "x"}\n')
    assert sample(model, prompts, out) == 1
    assert "the prompt is another" in capsys.readouterr().err


def test_two_processes_do_not_write_one_file(model, prompts, tmp_path, capsys):
    with held(tmp_path / ".out.jsonl.lock", ""):
        assert sample(model, prompts, tmp_path / "out.jsonl") == 1
    assert "another process writes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--top_p=1.5", "top_p"),
        ("--max_tokens=64", "prompt has"),
        ("--config.decode.slots=3", "decode.slots is 3"),
        ("--out=gs://bucket/out.jsonl", "--out=gs://bucket/out.jsonl: this is written to a local or mounted folder"),
    ],
)
def test_what_cannot_be_sampled_is_said_before_the_weights_are_read(
    model, prompts, tmp_path, monkeypatch, word, said, capsys
):
    monkeypatch.setattr(hf_checkpoint, "load", lambda *words: pytest.fail("the weights were read"))
    assert sample(model, prompts, tmp_path / "out.jsonl", word) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "line 2: no JSON"), ('{"text": "x"}', 'line 2: wanted an object with a text "prompt"')],
)
def test_a_bad_line_is_named_before_the_model_is_read(prompts, tmp_path, line, said, capsys):
    prompts.write_text('{"prompt": "x"}\n' + line + "\n")
    assert sample("nowhere", prompts, tmp_path / "out.jsonl") == 1
    assert said in capsys.readouterr().err


def test_equal_samples_at_temperature_0_are_refused(model, prompts, tmp_path, capsys):
    assert sample(model, prompts, tmp_path / "out.jsonl", "--temperature=0") == 1
    assert "raise --temperature" in capsys.readouterr().err


def test_chat_prompts_go_through_the_template(model, prompts, tmp_path):
    sample(model, prompts, tmp_path / "raw.jsonl")
    assert sample(model, prompts, tmp_path / "chat.jsonl", "--chat") == 0
    raw, chat = rows_of(tmp_path / "raw.jsonl"), rows_of(tmp_path / "chat.jsonl")
    assert all(raw[key]["logprob"] != chat[key]["logprob"] for key in raw)


def test_chat_without_a_template_is_refused(model, prompts, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=lambda _, names: [name for name in names if "chat_template" in name])
    assert sample(bare, prompts, tmp_path / "out.jsonl", "--chat") == 1
    assert "no chat template" in capsys.readouterr().err


def test_a_runs_model_is_asked_with_the_template_arguments_it_was_trained_with(tmp_path):
    tokenizer = tiny.byte_level(
        chat_template="{{ messages | map(attribute='content') | join }}{% if short %}!{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    question = [{"role": "user", "content": "Q"}]
    for kwargs, prompt in (({}, "Q"), ({"short": True}, "Q!")):
        rules = make_rules(tiny.settings(template="chat", template_kwargs=kwargs), tokenizer)
        opened = OpenedModel("name", "origin", None, None, str(tmp_path), (), rules)
        assert opened.tokenizer.apply_chat_template(question, tokenize=False) == prompt

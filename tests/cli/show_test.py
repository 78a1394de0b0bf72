"""`iterpref show` as a user types it: datasets, files, and what it says when something is wrong."""

from __future__ import annotations

import pathlib
import re

import pytest

from iterpref_jax.__main__ import main
from iterpref_jax.codeflow import records
from iterpref_jax.data import build
from iterpref_jax.view import page as view_page
from tests.data import tiny

BASE = str(pathlib.Path(__file__).parents[2] / "configs" / "base.py")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    path = tmp_path_factory.mktemp("histories") / "histories.jsonl"
    records.write_trajectories(path, tiny.trajectories(8))
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tokenizer, histories):
    path = tmp_path_factory.mktemp("built") / "data"
    build.build([histories], path, tiny.build_settings(tokenizer))
    return path


def _error(capsys, *argv) -> str:
    assert main(["show", *map(str, argv)]) == 1
    return capsys.readouterr().err


def test_a_dataset_is_shown_with_its_own_tokenizer(dataset, capsys):
    assert main(["show", str(dataset), "--pair=h1#v0", "--limit=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:1] for line in lines if "return 1 - b" in line] == ["-"]
    assert [line[:1] for line in lines if "return c + b" in line] == ["+"]
    assert any("```python" in line for line in lines)


def test_pairs_with_one_chosen_side_are_shown_as_a_tree_as_well(dataset, tmp_path, capsys):
    assert main(["show", str(dataset), "--pair=h1#"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("tree+truncate" in line and "(2 pairs with this chosen side)" in line for line in lines) == 2
    assert "as tree+truncate" in lines[1]
    page = tmp_path / "page.html"
    assert main(["show", str(dataset), "--pair=h1#v0", f"--html={page}"]) == 0
    heights = [int(height) for height in re.findall(r'<svg role="img" height="(\d+)" aria-label="', page.read_text())]
    # One lane more than in the four pictures of the pair alone.
    assert heights == [heights[0]] * 4 + [heights[0] + view_page.PITCH]


def test_a_pair_alone_with_its_chosen_side_is_shown_without_another_tree(dataset, capsys):
    assert main(["show", str(dataset), "--pair=h0#"]) == 0
    assert "with this chosen side" not in capsys.readouterr().out


def test_limit_is_the_number_of_pairs_shown(dataset, capsys):
    assert main(["show", str(dataset), "--limit=2"]) == 0
    out = capsys.readouterr().out
    assert out.count("\ntask ") == 2
    assert "2 of 14 pairs" in out


def test_a_page_is_written(dataset, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    assert main(["show", str(dataset), f"--html={page}"]) == 0
    assert page.read_text().count('<section class="pair"') == 14
    assert str(page) in capsys.readouterr().err


def test_a_file_is_shown_with_the_focus_of_its_config(histories, tokenizer, capsys):
    focal = ["--config.build.focus.mode=prefix_suffix", f"--config.build.text.tokenizer={tokenizer}"]
    last = ["--config.build.pairs.choose=last", "--pair=h1#"]
    assert main(["show", str(histories), f"--config={BASE}", *focal, *last]) == 0
    out = capsys.readouterr().out
    assert "focus by prefix_suffix, recipe prefix_suffix" in out
    assert "shared+truncate" in out
    assert [line for line in out.splitlines() if line.startswith(("+", "-"))] == [
        "+    3      return c + b",
        "-    3      return c - b",
    ]


def test_without_a_tokenizer_a_file_is_shown_as_text(histories, capsys):
    assert main(["show", str(histories), f"--config={BASE}"]) == 0
    out = capsys.readouterr().out
    assert "+    3      return c + b" in out
    assert "shared+truncate" not in out


def test_pairs_that_build_would_drop_say_why(histories, capsys):
    assert main(["show", str(histories), f"--config={BASE}", "--config.build.pairs.choose=last", "--pair=h0#"]) == 0
    assert "leaves this pair out: empty_focus" in capsys.readouterr().out


def test_a_file_without_config_asks_for_one(histories, capsys):
    assert "add --config=FILE" in _error(capsys, histories)


def test_a_dataset_refuses_a_config(dataset, capsys):
    assert "leave --config out" in _error(capsys, dataset, f"--config={BASE}")


def test_overrides_need_a_config(histories, capsys):
    assert "--config=FILE" in _error(capsys, histories, "--config.build.seed=1")


def test_a_file_has_no_splits(histories, capsys):
    assert "--split=eval" in _error(capsys, histories, f"--config={BASE}", "--split=eval")


def test_an_unknown_split_names_the_splits(dataset, capsys):
    assert "no split 'trian', there are ['train']; did you mean 'train'?" in _error(capsys, dataset, "--split=trian")


def test_an_unknown_pair_names_a_close_one(dataset, capsys):
    error = _error(capsys, dataset, "--pair=h1#w0")
    assert "no pair id" in error
    assert "did you mean 'h1#v0'?" in error


def test_a_pair_unlike_any_other_lists_some(dataset, capsys):
    assert "(14 pairs); there are h0#v0, h1#v0, h1#v1, " in _error(capsys, dataset, "--pair=zzzzzz")


def test_a_folder_that_is_no_dataset_is_named(tmp_path, capsys):
    assert f"{tmp_path}: not a dataset: iterpref.json is missing" in _error(capsys, tmp_path)


def test_a_missing_path_is_named(tmp_path, capsys):
    assert f"{tmp_path / 'none'}: no such file or folder" in _error(capsys, tmp_path / "none")


def test_a_limit_below_one_is_refused(dataset, capsys):
    assert "--limit must be 1 or more, not 0" in _error(capsys, dataset, "--limit=0")


def test_an_unknown_recipe_names_a_close_one(dataset, capsys):
    assert "did you mean 'target_dpo'?" in _error(capsys, dataset, "--recipe=targetdpo")


def test_a_pair_of_a_file_is_marked_with_the_rule_by_which_the_build_drops_it(tokenizer, tmp_path, capsys):
    long = "y = 2\n" * 400
    pairs = [
        tiny.pair("x = 1\n", "x = 2\n", pair_id="first"),
        tiny.pair("x = 1\n", "x = 2\n", pair_id="again"),
        tiny.pair(f"x = 1\n{long}", f"x = 2\n{long}", pair_id="long"),
        tiny.pair("x = 3\n", "x = 4\n", prompt="word " * 200, pair_id="asked at length"),
    ]
    records.write_pairs(tmp_path / "p.jsonl", pairs)
    limits = ["--config.build.max_tokens=500", "--config.build.max_prompt_tokens=150"]
    words = [
        "show",
        str(tmp_path / "p.jsonl"),
        f"--config={BASE}",
        f"--config.build.text.tokenizer={tokenizer}",
        *limits,
    ]
    shown = {}
    for pair in pairs:
        assert main([*words, f"--pair={pair.pair_id}"]) == 0
        shown[pair.pair_id] = re.findall(r"duplicate|too_many_tokens|prompt_too_long", capsys.readouterr().out)
    dropped = {"again": ["duplicate"], "long": ["too_many_tokens"], "asked at length": ["prompt_too_long"]}
    assert shown == {"first": []} | dropped


def test_a_pair_that_the_tokenizer_cannot_give_back_is_shown_as_text(tmp_path, capsys):
    tiny.metaspace().save_pretrained(tmp_path / "ascii")
    records.write_pairs(tmp_path / "p.jsonl", [tiny.pair("x = 'ß'\n", "x = 's'\n")])
    words = [
        f"--config={BASE}",
        "--config.build.text.template=raw",
        f"--config.build.text.tokenizer={tmp_path / 'ascii'}",
    ]
    assert main(["show", str(tmp_path / "p.jsonl"), *words]) == 0
    out = capsys.readouterr().out
    assert "not_reversible" in out
    assert "x = 'ß'" in out

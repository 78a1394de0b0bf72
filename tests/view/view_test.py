"""What is shown is what is trained: text, focus, weights and trees of the view against the record and the layout."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from iterpref_jax.codeflow import focus as focusing
from iterpref_jax.codeflow import records
from iterpref_jax.data import layout, text_rules, tokenize
from iterpref_jax.errors import UserError
from iterpref_jax.objectives.weights import RECIPES, pair_weights
from iterpref_jax.view import model as view
from iterpref_jax.view import text as view_text
from iterpref_jax.view import tree as trees
from tests.data import tiny
from tests.support.examples import index_of, random_examples, random_group
from tests.view import made


@st.composite
def _cut_text(draw):
    text = draw(st.text(alphabet="ab \t\r\né漢😀\u200b", max_size=40))
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=12)) & set(range(1, len(data))))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)] if data else []
    bounds = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    return text, pieces, list(zip(bounds[::2], bounds[1::2], strict=False))


@hypothesis.given(_cut_text())
def test_lines_hold_every_character_once(case):
    text, pieces, spans = case
    decoded, places = view_text.decode(pieces, [False] * len(pieces))
    assert decoded == text
    assert "".join(map(view_text.line_text, view_text.lines(text, places, spans, ("", "")))) == text


@hypothesis.given(_cut_text())
def test_marked_characters_are_those_of_the_spans(case):
    text, pieces, spans = case
    _, places = view_text.decode(pieces, [False] * len(pieces))
    wanted = [place for start, end in spans for place in range(start, end)]
    for cut in (places, []):
        assert made.focus_places(view_text.lines(text, cut, spans, ("", ""))) == wanted


@hypothesis.given(_cut_text())
def test_every_token_starts_in_one_line(case):
    text, pieces, spans = case
    _, places = view_text.decode(pieces, [False] * len(pieces))
    runs = [run for line in view_text.lines(text, places, spans, ("", "")) for run in line.runs]
    assert [run.token for run in runs if run.is_start and run.token is not None] == list(range(len(pieces)))


def test_a_split_character_belongs_to_its_first_token():
    text, places = view_text.decode(["é".encode()[:1], "é".encode()[1:], b"x"], [False] * 3)
    assert (text, [(place.start, place.end) for place in places]) == ("éx", [(0, 1), (1, 1), (1, 2)])
    [line] = view_text.lines(text, places, [], ("", ""))
    assert [part for run in line.runs for part in run.parts][1] == view_text.Part("bytes", "A9", False)


def test_bytes_that_are_not_utf8_are_shown_as_their_value():
    text, places = view_text.decode([b"a\xff", b"b"], [False] * 2)
    [line] = view_text.lines(text, places, [], ("", ""))
    assert "".join(view_text.mark(part) for run in line.runs for part in run.parts) == "a⟨FF⟩b"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("a b", ["text"]),
        ("a  \n", ["text", "space", "newline"]),
        ("\ta", ["tab", "text"]),
        ("a\r\n", ["text", "char", "newline"]),
        ("a\u202eb", ["text", "char", "text"]),
        ("a\x1b[0m", ["text", "char", "text"]),
        ("a\xa0", ["text", "char"]),
    ],
)
def test_whitespace_and_invisible_characters_are_parts_of_their_own(text, kinds):
    [line] = view_text.lines(text, [], [], ("", ""))
    assert [part.kind for part in line.runs[0].parts] == kinds


def test_equal_lines_stand_side_by_side():
    left, right = (view_text.lines(text, [], [], ("", "")) for text in ("a\nb\nc\n", "b\nx\nc\n"))
    rows = [tuple(line and view_text.line_text(line) for line in row) for row in view_text.aligned(left, right)]
    assert rows == [("a\n", None), ("b\n", "b\n"), (None, "x\n"), ("c\n", "c\n")]


def test_lines_of_a_fenced_program_have_the_programs_numbers():
    lines = view_text.lines("```python\na\nb\n```</s>", [], [], ("```python\n", "```"))
    assert [line.number for line in lines] == [None, 1, 2, None]


@pytest.mark.parametrize("mode", ["line", "token", "prefix_suffix", "augment"])
def test_the_marked_characters_equal_the_focus(mode):
    focus = focusing.find_focus(made.CHOSEN, made.REJECTED, made.focus_settings(mode), "p0")
    pair = made.pair_view(mode=mode)
    for side, text, spans in zip(pair.sides, (made.CHOSEN, made.REJECTED), (focus.chosen, focus.rejected), strict=True):
        marked = "".join(side.text[place] for place in made.focus_places(side.lines))
        assert marked == "".join(text[start:end] for start, end in spans)


@pytest.mark.parametrize("mode", ["line", "token"])
def test_a_record_marks_exactly_its_focus_tokens(mode):
    pair = made.pair_view(mode=mode, with_spans=False)
    for side in pair.sides:
        marked = "".join(side.text[place] for place in made.focus_places(side.lines))
        assert marked == "".join(token.text for token in side.tokens if token.is_focus)


def test_an_anchor_is_a_token_in_focus_without_focus_characters():
    pair = made.pair_view("x = 1\ny = 2\nz = 3\n", "x = 1\nz = 3\n")
    anchors = [token for token in pair.rejected.tokens if token.is_anchor]
    assert [token.text for token in anchors] == [next(t.text for t in pair.rejected.tokens[1:] if t.text[:1] == "z")]
    assert [line.number for line in pair.rejected.lines if line.has_anchor] == [2]
    assert not any(token.is_anchor for token in pair.chosen.tokens)


def test_an_anchor_is_shown_at_the_token_where_the_sides_part():
    pair = made.pair_view("x = 1\nx = 1\nz = 3\n", "x = 1\nz = 3\n")
    assert [token.text[:1] for token in pair.rejected.tokens if token.is_anchor] == ["z"]
    assert [line.number for line in pair.rejected.lines if line.has_anchor] == [2]


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_are_those_of_the_recipe_at_every_token(recipe):
    mode = RECIPES[recipe].focus_mode or "line"
    pair = made.pair_view(mode=mode, recipe=recipe)
    example = pair.tokens.example
    wanted = pair_weights(
        RECIPES[recipe], example.chosen_focus, example.rejected_focus, record=0, seed=3, nll_norm="example"
    )
    np.testing.assert_array_equal([token.weight for token in pair.chosen.tokens], wanted.chosen)
    np.testing.assert_array_equal([token.weight for token in pair.rejected.tokens], wanted.rejected)
    np.testing.assert_array_equal(np.float32([token.nll_weight for token in pair.chosen.tokens]), wanted.nll)
    assert not any(token.nll_weight for token in pair.rejected.tokens)


def test_tokens_carry_what_the_tree_holds_for_them():
    pair = made.pair_view()
    tree, prompt = pair.tokens.tree, len(pair.tokens.example.prompt_ids)
    for slot, side in enumerate(pair.sides):
        for number, token in enumerate(side.tokens):
            if token.column is not None:
                assert tree.tokens[token.column] == token.id
                assert (tree.depth[token.column], tree.visible_until[token.column]) == (
                    token.depth,
                    token.visible_until,
                )
                assert token.depth == prompt + number
            if token.is_target:
                source, target = tree.source[tree.term], tree.target[tree.term]
                [at] = np.flatnonzero((tree.slot == slot) & (tree.depth[source] + 1 == prompt + number))
                assert (source[at], target[at]) == (token.source, token.id)
                assert view.PARTS[tree.part[at]] == token.part
    assert sum(token.is_target for side in pair.sides for token in side.tokens) == len(tree.term)


def _random_trees():
    for record, example in enumerate(random_examples(40, seed=5)):
        for recipe in ("target_rpo", "dpo", "sft", "hybrid", "symmetric"):
            for name in trees.NAMES:
                yield (
                    example,
                    name,
                    layout.lay_out([example], [record], trees.row_settings(name), made.weighting(recipe)),
                )


def test_a_sides_columns_spell_its_sequence():
    for example, _, tree in _random_trees():
        for side, ids in ((layout.CHOSEN, example.chosen_ids), (layout.REJECTED, example.rejected_ids)):
            columns = trees.column_of(tree, side, len(example.prompt_ids) + len(ids))
            size = int((columns >= 0).sum())
            assert (columns[size:] == -1).all()
            assert set(tree.source[tree.term[tree.slot == side]]) <= set(columns[:size])
            np.testing.assert_array_equal(tree.tokens[columns[:size]], np.concatenate([example.prompt_ids, ids])[:size])


def test_every_column_has_an_owner_and_shared_ones_have_both():
    for example, name, tree in _random_trees():
        owner = trees.owners(tree)
        lengths = [(trees.column_of(tree, side, 200) >= 0).sum() for side in (0, 1)]
        assert sum(lengths) == len(tree.tokens) + (owner == trees.BOTH).sum()
        if name.startswith("separate"):
            assert not (owner == trees.BOTH).any()
        elif len(np.unique(tree.slot)) == 2:
            assert (owner == trees.BOTH).sum() >= len(example.prompt_ids)


def test_a_column_is_read_if_a_gathered_column_attends_to_it():
    for _, _, tree in _random_trees():
        wanted = [any(j <= i < tree.visible_until[j] for i in tree.source) for j in range(len(tree.tokens))]
        np.testing.assert_array_equal(trees.is_read(tree), wanted)


def test_pictures_account_for_every_token():
    for example, name, tree in _random_trees():
        picture = trees.picture(name, tree, example, 0)
        sizes = {"read": 0, "idle": 0, "left out": 0}
        for segment in picture.segments:
            sizes[segment.state] += segment.end - segment.start
        assert sizes["read"] + sizes["idle"] == picture.tokens == len(tree.tokens)
        if name.endswith("truncate"):
            assert sizes["idle"] == 0
        for side, ids in (("chosen", example.chosen_ids), ("rejected", example.rejected_ids)):
            own = sorted((s.start, s.end) for s in picture.segments if s.owner in (side, "both"))
            # End to end, from the first token of the prompt to the last one of the completion.
            assert [a for a, _ in own] == [0, *(b for _, b in own[:-1])]
            assert own[-1][1] == len(example.prompt_ids) + len(ids)


def _group_pictures():
    rng = np.random.default_rng(9)
    for size in (1, 2, 3, 5, 5, 5):
        group = random_group(rng, size)
        for recipe in ("target_rpo", "dpo", "symmetric"):
            tree = layout.lay_out(group, range(size), trees.row_settings(trees.GROUP), made.weighting(recipe))
            yield group, tree, trees.group_picture(tree, group, 0)


def test_the_tree_of_a_group_shows_every_column_once_and_every_branch_in_its_lane():
    for group, tree, picture in _group_pictures():
        computed = [segment for segment in picture.segments if segment.state != "left out"]
        assert sum(segment.end - segment.start for segment in computed) == picture.tokens == len(tree.tokens)
        reach = [max(map(len, tree.paths[::2])), *map(len, tree.paths[1::2])]
        sequences = [group[0].chosen_ids, *(example.rejected_ids for example in group)]
        for lane, (used, ids) in enumerate(zip(reach, sequences, strict=True)):
            segments = sorted(segment[3:5] for segment in picture.segments if segment.lane == lane)
            # From where it leaves the lanes above to its last token, end to end.
            assert [start for start, _ in segments[1:]] == [end for _, end in segments[:-1]]
            if segments:
                assert segments[-1][1] == max(used, len(group[0].prompt_ids) + len(ids))
            else:
                assert used == len(group[0].prompt_ids) + len(ids)


def test_the_tree_of_a_group_marks_every_gathered_column():
    for _, tree, picture in _group_pictures():
        for name, side in (("chosen", layout.CHOSEN), ("rejected", layout.REJECTED)):
            places = [at for mark in picture.marks if mark.side == name for at in range(mark.start, mark.end)]
            sources = np.unique(tree.source[tree.term[tree.slot % 2 == side]])
            assert sorted(places) == sorted(tree.depth[sources].tolist())


def test_marks_are_the_gathered_positions():
    for example, name, tree in _random_trees():
        marks = trees.picture(name, tree, example, 0).marks
        for side, number in (("chosen", layout.CHOSEN), ("rejected", layout.REJECTED)):
            marked = [place for mark in marks if mark.side == side for place in range(mark.start, mark.end)]
            assert marked == tree.depth[tree.source[tree.term[tree.slot == number]]].tolist()


def test_the_row_shows_every_column_once_and_in_order():
    pair = made.pair_view()
    places = [(stretch.start + run.token) for stretch in pair.tokens.stretches for run in stretch.runs]
    assert places == list(range(len(pair.tokens.tree.tokens)))
    assert [stretch.kind for stretch in pair.tokens.stretches] == ["prompt", "common", "tail", "tail"]


def test_the_summary_adds_up_what_the_layout_makes():
    examples = random_examples(30, seed=7)
    weighting = made.weighting("target_rpo")
    sizes = {
        name: [layout.lay_out([e], [i], trees.row_settings(name), weighting) for i, e in enumerate(examples)]
        for name in trees.NAMES
    }
    found = trees.summary(index_of(examples), weighting)
    assert found.tokens == {name: sum(len(tree.tokens) for tree in laid) for name, laid in sizes.items()}
    assert found.targets == sum(len(tree.target) for tree in sizes[trees.FOCAL])
    savings = [len(a.tokens) / len(b.tokens) for a, b in zip(sizes["separate"], sizes[trees.FOCAL], strict=True)]
    assert found.mean_saving == pytest.approx(np.mean(savings))


def test_without_a_name_the_recipe_fits_the_focus():
    for mode, wanted in (("line", "target_rpo"), ("augment", "diff_augment"), ("token", "token_focus")):
        assert view.choose_recipe("", mode) == wanted


def test_a_recipe_for_another_focus_is_refused_with_those_that_fit():
    with pytest.raises(UserError, match=r"token_focus needs 'token' focus, these pairs have 'line'.*target_rpo"):
        view.choose_recipe("token_focus", "line")
    with pytest.raises(UserError, match="did you mean 'target_rpo'"):
        view.choose_recipe("target_rop", "line")


@pytest.mark.slow
def test_real_histories_are_shown_token_for_token():
    path = tiny.data_folder("trajectories") / "dev_sample.jsonl.gz"
    tokenizer = tiny.real("qwen2.5")
    encoder = tokenize.Encoder(tokenizer, text_rules.make_rules(tiny.settings(template="chat"), tokenizer))
    words, shift = view.vocabulary(tokenizer, encoder.rules), len(encoder.rules.fence_open)
    for number, history in enumerate(records.read_trajectories(path)):
        rejected = encoder.normalize(history.versions[0].code)
        pair = tiny.pair(encoder.normalize(history.versions[-1].code), rejected, prompt=history.instruction)
        focus = focusing.find_focus(pair.chosen, pair.rejected, made.focus_settings(), pair.pair_id)
        [example] = encoder.encode_pairs([pair], [focus])
        spans = tuple([(a + shift, b + shift) for a, b in side] for side in (focus.chosen, focus.rejected))
        shown = view.of_record(example, number, words, made.weighting("target_rpo"), spans=spans)
        for side, text in zip(shown.sides, (pair.chosen, pair.rejected), strict=True):
            assert text in side.text
            assert "".join(token.text for token in side.tokens) == side.text
            wanted = [place for start, end in spans[side is shown.rejected] for place in range(start, end)]
            assert made.focus_places(side.lines) == wanted
        if number == 20:
            break

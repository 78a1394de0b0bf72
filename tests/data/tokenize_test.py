"""Ids and focus of completions, for a byte-level, a SentencePiece-like and four real tokenizers."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import pickle
import random

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies as st

from iterpref_jax.codeflow import focus as focusing
from iterpref_jax.codeflow.focus import Focus
from iterpref_jax.data import text_rules, tokenize
from iterpref_jax.errors import UserError
from tests.data import tiny

PROGRAMS = {
    "plain": "def add(a, b):\n    return a + b\n",
    "no final newline": "x = 1\ny = 2",
    "crlf and tabs": "def f():\r\n\treturn 1\r\n\tx =\t2",
    "non-ascii": "s = 'naïve Größe õ'  # 漢字 ▼\n",
    "emoji": "print('👩‍💻 😀')\n",
    "special tokens": "print('</s> <s> <|endoftext|> <|im_end|> <unk>')\n",
    "backticks": "doc = '''\n```python\nx\n```\n'''\n",
    "id zero": "if not x != 1: print('!!')\n",
    "leading space": "   x\n",
    "leading newline": "\n\nx = 1",
    "empty": "",
}
ASCII = [name for name, text in PROGRAMS.items() if text.isascii()]


def _encoder(tokenizer, **changes):
    return tokenize.Encoder(tokenizer, text_rules.make_rules(tiny.settings(**changes), tokenizer))


@functools.cache
def _real_encoder(name):
    return _encoder(tiny.real(name), eos="none")


def _prompt_ids(encoder, prompt):
    return encoder.encode_pairs([tiny.pair("x", prompt=prompt)], [Focus(chosen=(), rejected=())])[0].prompt_ids.tolist()


def _encode(encoder, chosen, spans=(), form="code"):
    example = encoder.encode_pairs([tiny.pair(chosen, form=form)], [Focus(chosen=tuple(spans), rejected=())])[0]
    return example.chosen_ids, example.chosen_focus


def _weighted_text(encoder, chosen, spans, form="code"):
    ids, focus = _encode(encoder, chosen, spans, form)
    runs = [list(group) for on, group in itertools.groupby(zip(focus, ids, strict=True), lambda x: x[0]) if on]
    return [encoder.tokenizer.backend_tokenizer.decode([i for _, i in run], skip_special_tokens=False) for run in runs]


def _plain(tokenizer):
    spec = json.loads(tokenizer.backend_tokenizer.to_str()) | {"post_processor": None}
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    backend.encode_special_tokens = True
    return backend


def _brute_focus(backend, guard, text, spans):
    """The focus from the tokenizer's own character offsets: a token weighs iff one of its characters is in a span."""
    offsets = [
        (a - len(guard), b - len(guard)) for a, b in backend.encode(guard + text, add_special_tokens=False).offsets
    ]
    offsets = [(a, b) for a, b in offsets if a >= 0]
    focus = [int(any(s < b and a < e for s, e in spans)) for a, b in offsets]
    for anchor, end in spans:
        if anchor == end:
            focus[next(i for i, (_, b) in enumerate(offsets) if b > anchor)] = 1
    return focus


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("fence", ["python", "none"])
def test_byte_level_ids_decode_to_the_completion(name, fence):
    encoder = _encoder(tiny.byte_level(), fence=fence)
    ids, _ = _encode(encoder, PROGRAMS[name])
    eos = encoder.tokenizer.eos_token_id
    assert ids[-1] == eos
    decoded = encoder.tokenizer.backend_tokenizer.decode(ids[:-1].tolist(), skip_special_tokens=False)
    assert decoded == encoder.completion_text(PROGRAMS[name], "code")
    assert eos not in ids[:-1]


@pytest.mark.parametrize("name", ASCII)
@pytest.mark.parametrize("fence", ["python", "none"])
def test_metaspace_ids_decode_to_the_completion_without_a_space_in_front(name, fence):
    encoder = _encoder(tiny.metaspace(), fence=fence)
    ids, _ = _encode(encoder, PROGRAMS[name])
    guarded = [*encoder.rules.guard_ids, *ids[:-1].tolist()]
    decoded = encoder.tokenizer.backend_tokenizer.decode(guarded, skip_special_tokens=False)
    assert decoded == "\n" + encoder.completion_text(PROGRAMS[name], "code")


def test_the_fence_closes_on_a_line_of_its_own():
    encoder = _encoder(tiny.byte_level())
    assert encoder.completion_text("x", "code") == "```python\nx\n```"
    assert encoder.completion_text("x\n", "code") == "```python\nx\n```"
    assert encoder.completion_text("Look:\nx", "text") == "Look:\nx"
    assert _encoder(tiny.byte_level(), fence="none").completion_text("x", "code") == "x"


def test_spans_are_shifted_by_the_fence_of_programs_only():
    encoder = _encoder(tiny.byte_level())
    assert "".join(_weighted_text(encoder, "x = 1\n", [(4, 5)])) in ("1", " 1")
    assert "".join(_weighted_text(encoder, "x = 1\n", [(4, 5)], form="text")) in ("1", " 1")


def test_a_whole_line_span_weights_exactly_that_line():
    encoder = _encoder(tiny.byte_level())
    assert _weighted_text(encoder, "a = 1\nb = 2\nc = 3\n", [(6, 12)]) == ["b = 2\n"]


def test_no_span_weights_nothing():
    ids, focus = _encode(_encoder(tiny.byte_level()), "x = 1\n")
    assert len(focus) == len(ids)
    assert not focus.any()


def test_the_end_of_sequence_is_not_weighted_by_a_span_up_to_the_end():
    _, focus = _encode(_encoder(tiny.byte_level(), fence="none"), "x = 1", [(0, 5)])
    assert focus.tolist() == [1] * (len(focus) - 1) + [0]


def test_all_tokens_of_a_split_character_are_weighted():
    encoder = _encoder(tiny.byte_level(), fence="none")
    ids, focus = _encode(encoder, "ab😀c", [(2, 3)])
    assert focus.sum() == 4  # the tiny vocabulary has no merge for the four bytes of an emoji
    assert encoder.tokenizer.backend_tokenizer.decode(ids[focus == 1].tolist()) == "😀"


def test_an_anchor_marks_the_first_token_that_ends_after_it():
    encoder = _encoder(tiny.byte_level(), fence="none")
    ids, focus = _encode(encoder, "aé😀z", [(1, 1)])
    assert focus.tolist() == [0, 1] + [0] * (len(ids) - 2)
    _, focus = _encode(encoder, "aé😀z", [(3, 3)])
    assert np.flatnonzero(focus).tolist() == [len(ids) - 2]


def test_an_anchor_at_the_end_marks_the_end_of_sequence():
    _, focus = _encode(_encoder(tiny.byte_level(), fence="none"), "x = 1", [(5, 5)])
    assert focus.tolist() == [0] * (len(focus) - 1) + [1]


def test_an_anchor_at_the_end_of_a_fenced_program_marks_what_follows_it():
    assert _weighted_text(_encoder(tiny.byte_level()), "x = 1\n", [(6, 6)])[0].startswith("`")


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("def f(a):\n    b = a\n    return b\n", "def f(a):\n    return b\n"),
        ("x = 1\nprint(x)", "x = 1"),
        ("x = 1\nx = 1\ny\n", "x = 1\ny\n"),
    ],
    ids=["indentation", "line end", "repeated line"],
)
@pytest.mark.parametrize("fence", ["python", "none"])
def test_an_anchor_stands_where_the_sides_part(chosen, rejected, fence):
    settings = focusing.FocusSettings(mode="line", empty="anchor", seed=0)
    pair, focus = tiny.pair(chosen, rejected), focusing.find_focus(chosen, rejected, settings, "p0")
    example = _encoder(tiny.byte_level(), fence=fence).encode_pairs([pair], [focus])[0]
    [place] = np.flatnonzero(example.rejected_focus).tolist()
    assert example.rejected_ids[:place].tolist() == example.chosen_ids[:place].tolist()
    assert example.rejected_ids[place] != example.chosen_ids[place]


def test_an_anchor_at_the_end_without_end_of_sequence_is_refused():
    encoder = _encoder(tiny.byte_level(), fence="none", eos="none")
    with pytest.raises(UserError, match=r"pair 'p0', chosen: .*anchor.*text\.eos"):
        _encode(encoder, "x = 1", [(5, 5)])


def test_without_end_of_sequence_nothing_is_appended():
    encoder = _encoder(tiny.byte_level(), fence="none", eos="none")
    ids, _ = _encode(encoder, "x = 1")
    assert encoder.tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=False) == "x = 1"


def test_spans_outside_the_text_are_a_defect():
    with pytest.raises(ValueError, match="outside"):
        _encode(_encoder(tiny.byte_level(), fence="none"), "x", [(0, 2)])


@pytest.mark.slow
@hypothesis.given(st.text(st.sampled_from("ab \n\té漢😀{}"), max_size=30), st.data())
@hypothesis.settings(deadline=None, max_examples=60)
def test_focus_equals_the_one_from_character_offsets(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6, unique=True)))
    spans = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    encoder = _encoder(tiny.byte_level(), fence="none", eos="none")
    _, focus = _encode(encoder, text, spans, form="text")
    assert focus.tolist() == _brute_focus(_plain(encoder.tokenizer), "", text, spans)


def test_text_that_the_tokenizer_cannot_express_is_refused_by_name():
    encoder = _encoder(tiny.metaspace(), fence="none")
    with pytest.raises(UserError, match=r"pair 'p0', chosen: .*at character 5 wanted 'ß', got"):
        _encode(encoder, "x = 'ß")


def test_half_a_surrogate_pair_is_refused_by_name():
    with pytest.raises(UserError, match=r"pair 'p0'.*surrogate.*character 12"):
        _encode(_encoder(tiny.byte_level()), "x \ud83d")
    encoder = _encoder(tiny.byte_level())
    with pytest.raises(UserError, match=r"pair 'p0'.*surrogate"):
        encoder.encode_pairs([tiny.pair("x", prompt="\ud83d")], [Focus(chosen=(), rejected=())])


def test_normalised_text_is_what_the_tokenizer_encodes():
    encoder = _encoder(tiny.byte_level(nfc=True), fence="none")
    assert encoder.normalize("e\u0301 = 1") == "\u00e9 = 1"
    ids, _ = _encode(encoder, encoder.normalize("e\u0301"))
    assert encoder.tokenizer.backend_tokenizer.decode(ids[:-1].tolist()) == "\u00e9"
    assert _encoder(tiny.byte_level()).normalize("e\u0301") == "e\u0301"


def test_a_raw_prompt_is_encoded_as_at_inference():
    encoder = _encoder(tiny.byte_level(bos=True))
    ids = _prompt_ids(encoder, "Do it.")
    assert ids == encoder.tokenizer("Do it.\n")["input_ids"]
    assert ids[0] == encoder.tokenizer.convert_tokens_to_ids("<s>")


def test_raw_texts_are_joined_as_they_stand():
    encoder = _encoder(tiny.byte_level(), eos="none")
    pair = tiny.pair(" 4.", " 5.", "Q: 2+2?\nA:", form="text")
    example = encoder.encode_pairs([pair], [Focus(chosen=(), rejected=())])[0]
    decoded = encoder.tokenizer.decode([*example.prompt_ids, *example.chosen_ids])
    assert decoded == "Q: 2+2?\nA: 4."


def test_one_prompt_of_texts_and_programs_is_encoded_for_each():
    encoder = _encoder(tiny.byte_level())
    pairs = [tiny.pair("x\n", "y\n", form=form) for form in ("code", "text", "code")]
    examples = encoder.encode_pairs(pairs, [Focus(chosen=(), rejected=())] * 3)
    one, other, again = (encoder.tokenizer.decode(example.prompt_ids) for example in examples)
    assert one == again == other + "\n"


def test_a_chat_prompt_has_the_system_message_and_ends_where_the_answer_starts():
    encoder = _encoder(tiny.byte_level(bos=True, chat_template=tiny.CHAT_TEMPLATE), template="chat", system="Be good.")
    wanted = "<|turn|>system\nBe good.<|end|>\n<|turn|>user\nDo it.<|end|>\n<|turn|>assistant\n"
    assert encoder.prompt_text("Do it.", "code") == wanted
    ids = _prompt_ids(encoder, "Do it.")
    assert ids == encoder.tokenizer(wanted, add_special_tokens=False)["input_ids"]
    assert ids.count(encoder.tokenizer.convert_tokens_to_ids("<|turn|>")) == 3


def test_a_prompt_of_messages_keeps_its_own_system_message():
    encoder = _encoder(tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE), template="chat", system="Be good.")
    text = encoder.prompt_text(({"role": "system", "content": "Mine."}, {"role": "user", "content": "Q"}), "text")
    assert text == "<|turn|>system\nMine.<|end|>\n<|turn|>user\nQ<|end|>\n<|turn|>assistant\n"


def test_a_prompt_of_messages_is_refused_in_raw_mode_by_name():
    encoder = _encoder(tiny.byte_level())
    with pytest.raises(UserError, match=r"pair 'p0', prompt: .*chat"):
        encoder.encode_pairs(
            [tiny.pair("x", prompt=({"role": "user", "content": "Q"},))], [Focus(chosen=(), rejected=())]
        )


def test_a_batch_equals_its_pairs_one_by_one():
    encoder = _encoder(tiny.byte_level())
    pairs = [tiny.pair(text, "x = 1", prompt=f"P{i % 2}", pair_id=str(i)) for i, text in enumerate(PROGRAMS.values())]
    focuses = [
        Focus(chosen=((0, len(pair.chosen)),) if pair.chosen else (), rejected=((i % 4, 4),))
        for i, pair in enumerate(pairs)
    ]
    batch = encoder.encode_pairs(pairs, focuses)
    for pair, focus, example in zip(pairs, focuses, batch, strict=True):
        alone = encoder.encode_pairs([pair], [focus])[0]
        assert alone[:2] == example[:2] == (pair.pair_id, "t0")
        for a, b in zip(alone[2:], example[2:], strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_encoder_survives_pickling():
    encoder = _encoder(tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE), template="chat")
    copy = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(_encode(copy, "x = 1")[0], _encode(encoder, "x = 1")[0])
    assert copy.prompt_text("Q", "code") == encoder.prompt_text("Q", "code")


@pytest.mark.parametrize("name", tiny.REAL)
@pytest.mark.parametrize("program", PROGRAMS)
def test_real_tokenizers_give_every_program_back(name, program):
    encoder = _real_encoder(name)
    text = encoder.normalize(PROGRAMS[program])
    ids, _ = _encode(encoder, text)
    guarded = [*encoder.rules.guard_ids, *ids.tolist()]
    decoded = encoder.tokenizer.backend_tokenizer.decode(guarded, skip_special_tokens=False)
    assert decoded == encoder.rules.guard + encoder.completion_text(text, "code")
    assert not set(ids.tolist()) & set(encoder.tokenizer.all_special_ids)


def _real_programs(limit):
    path = tiny.data_folder("trajectories") / "dev_sample.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        programs = [version["code"] for line in file for version in json.loads(line)["versions"]]
    return random.Random(0).sample(programs, limit)


@pytest.mark.parametrize("name", tiny.REAL)
def test_real_focus_equals_the_one_from_character_offsets(name):
    encoder, draw = _real_encoder(name), random.Random(1)
    backend = _plain(encoder.tokenizer)
    for text in map(encoder.normalize, _real_programs(60)):
        cuts = sorted(draw.sample(range(len(text) + 1), k=6))
        spans = list(zip(cuts[::2], cuts[1::2], strict=True))
        spans.append((cuts[0] // 2, cuts[0] // 2))
        _, focus = _encode(encoder, text, spans, form="text")
        assert focus.tolist() == _brute_focus(backend, encoder.rules.guard, text, spans)


def test_qwen_gives_the_exclamation_mark_id_zero():
    encoder = _encoder(tiny.real("qwen2.5"), fence="none")
    ids, focus = _encode(encoder, "!", [(0, 1)])
    assert ids.tolist() == [0, encoder.tokenizer.eos_token_id]
    assert focus.tolist() == [1, 0]

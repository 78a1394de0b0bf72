"""Where a completion ends: stop strings across tokens, stop tokens, lengths."""

import hypothesis
import hypothesis.strategies as st
import pytest

from iterpref_jax.decode.detokenize import Vocabulary
from iterpref_jax.decode.request import Request
from iterpref_jax.decode.stopping import StopStrings, Transcript
from tests.data import tiny

TOKENIZER = tiny.byte_level()
VOCABULARY = Vocabulary(TOKENIZER)
EOS = TOKENIZER.eos_token_id


def encode(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def run(tokens, parts=(), **fields):
    """Feeds the tokens in parts of the given lengths, then the rest; returns (text, used tokens, reason)."""
    request = Request(prompt=encode("def"), **({"max_tokens": 1000} | fields))
    transcript = Transcript(request, VOCABULARY, (EOS,))
    text, used = "", 0
    for length in (*parts, len(tokens)):
        part = tokens[used : used + length]
        new, count, reason = transcript.add(part)
        text, used = text + new, used + count
        if reason:
            return text, used, reason
        assert count == len(part)
    return text, used, None


def by_character(text, stops):
    """The definition: the text so far, one character at a time, until it ends with a stop string."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


letters = st.text("ab\n", max_size=30)
stops = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@hypothesis.settings(max_examples=500)
@hypothesis.given(st.lists(letters, max_size=6), stops)
def test_the_first_stop_string_ends_the_text_however_it_is_cut(parts, stops):
    finder, shown = StopStrings(stops), []
    wanted, wanted_found = by_character("".join(parts), stops)
    for part in parts:
        text, found = finder.push(part)
        shown.append(text)
        assert wanted.startswith("".join(shown)), "text was shown that a stop string takes"
        if found:
            break
    else:
        found = False
        shown.append(finder.flush())
    assert ("".join(shown), found) == (wanted, wanted_found)


@hypothesis.given(letters, stops)
def test_no_more_text_is_held_back_than_a_stop_string_could_take(text, stops):
    shown, found = StopStrings(stops).push(text)
    held = text[len(shown) :]
    assert found or not held or any(stop.startswith(held) for stop in stops)


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    st.text("ab\né😀 ", max_size=20), st.lists(st.integers(1, 5), max_size=5), st.booleans(), st.integers(1, 30), stops
)
def test_chunks_change_nothing(text, parts, eos, max_tokens, stops):
    tokens = [*encode(text), *([EOS] * eos), *encode("more")]
    whole = run(tokens, max_tokens=max_tokens, stop=stops)
    assert run(tokens, parts, max_tokens=max_tokens, stop=stops) == whole
    assert run(tokens, [1] * len(tokens), max_tokens=max_tokens, stop=stops) == whole


def test_a_stop_string_may_begin_and_end_inside_of_tokens():
    tokens = encode("return a + b\nclass A:\n    pass")
    text, used, reason = run(tokens, stop=["turn a", "urn a + b\ncl"])
    assert (text, reason) == ("re", "stop")
    # The token that completed it is the last of the completion.
    assert "turn a" in TOKENIZER.decode(tokens[:used])
    assert "turn a" not in TOKENIZER.decode(tokens[: used - 1])


def test_a_stop_token_shows_no_text_and_is_the_last_token():
    tokens = [*encode("a b"), EOS, *encode("c")]
    assert run(tokens) == ("a b", tokens.index(EOS) + 1, "stop")
    newline = encode("\n")
    assert run([*encode("a"), *newline, *encode("b")], stop_token_ids=newline) == ("a", 2, "stop")


def test_without_stop_tokens_the_end_of_sequence_is_a_token_like_others():
    tokens = [*encode("a"), EOS, *encode("b")]
    assert run(tokens, stop_token_ids=(), max_tokens=3) == ("ab", 3, "length")


def test_held_text_is_shown_when_no_stop_string_came():
    tokens = encode("ab")
    assert run([*tokens, EOS], stop=["abc"]) == ("ab", len(tokens) + 1, "stop")
    assert run(tokens, stop=["abc"], max_tokens=len(tokens)) == ("ab", len(tokens), "length")
    assert run(tokens, stop=["abc"]) == ("", len(tokens), None)


def test_an_unfinished_character_at_the_end_is_text_like_any_other():
    emoji = encode("😀")
    assert run(emoji[:2], max_tokens=2) == ("\ufffd", 2, "length")
    assert run(emoji[:2], max_tokens=2, stop=["\ufffd"]) == ("", 2, "stop")


@pytest.mark.parametrize("stop", [["b", "abc"], ["abc", "b"]])
def test_of_two_stop_strings_the_one_that_is_complete_first_wins(stop):
    assert StopStrings(stop).push("xabc") == ("xa", True)

"""The text of tokens as they come equals the text of all tokens, shows nothing twice and takes nothing back."""

import functools
import json
import time

import hypothesis
import hypothesis.strategies as st
import pytest
import tokenizers
import transformers

from iterpref_jax.decode.detokenize import REPLACEMENT, TextStream, Vocabulary
from tests.data import tiny

TEXTS = [
    "def f(x):\n    return x  # 😀 漢字 é\n\n\n",
    "👩‍👩‍👧‍👦🇩🇪 e\u0301 \u00a0 ﷽ \r\n\ttab",
    "  two spaces\n\n    four",
    "plain",
    f"a{REPLACEMENT}b{REPLACEMENT}",
]


@functools.cache
def byte_fallback():
    """A SentencePiece-like tokenizer as Llama 2 has it: bytes for what it does not know, newlines among them."""
    spec = json.loads(tiny.metaspace_json())
    spaces = set("\n\t\r")
    merges = [pair for pair in spec["model"]["merges"] if not spaces & set("".join(pair))]
    tokens = [token for token in spec["model"]["vocab"] if not spaces & set(token)]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: i for i, token in enumerate(tokens)}
    spec["model"].update(byte_fallback=True, merges=merges, vocab=vocab)
    spec["pre_tokenizer"] = None
    spec["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    spec["decoder"] = {"type": "Sequence", "decoders": decoders}
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@functools.cache
def tokenizer_of(name):
    made = {"byte_level": tiny.byte_level, "metaspace": tiny.metaspace, "byte_fallback": byte_fallback}
    return made[name]() if name in made else tiny.real(name)


@functools.cache
def vocabulary_of(name):
    return Vocabulary(tokenizer_of(name))


ALL = ("byte_level", "metaspace", "byte_fallback", *tiny.REAL)


def encode(name, text):
    return tokenizer_of(name).encode(text, add_special_tokens=False)


def stream(name, tokens, prompt=()):
    """The pieces that the tokens show, the last one at the end."""
    text = TextStream(vocabulary_of(name), prompt)
    return [*(text.add(token) for token in tokens), text.finish()]


def whole(name, tokens):
    return tokenizer_of(name).decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@st.composite
def completions(draw):
    """(prompt, completion) of the tokens of texts, of any tokens, and of special and unknown ones between."""
    size = 80  # ids stand for positions in the list of candidates, which depends on the tokenizer
    return draw(st.lists(st.integers(0, size))), draw(st.lists(st.integers(0, size), max_size=60))


@functools.cache
def candidates(name):
    """Ids in which the troublesome ones are common: bytes, pieces of characters, spaces, special and unknown tokens."""
    tokenizer = tokenizer_of(name)
    found = list(dict.fromkeys(token for text in TEXTS for token in encode(name, text)))[:50]
    single = [token for token in range(len(tokenizer)) if REPLACEMENT in tokenizer.decode([token])][:20]
    return [*found, *single, tokenizer.eos_token_id, len(tokenizer) + 5]


def ids(name, numbers):
    known = candidates(name)
    return [known[number % len(known)] for number in numbers]


@pytest.mark.parametrize("name", ALL)
@hypothesis.settings(max_examples=150)
@hypothesis.given(numbers=completions())
def test_the_pieces_of_any_tokens_make_up_their_text(name, numbers):
    prompt, tokens = ids(name, numbers[0]), ids(name, numbers[1])
    assert "".join(stream(name, tokens)) == whole(name, tokens)
    before, text = whole(name, prompt), whole(name, prompt + tokens)
    # A character that the prompt began and the completion ends belongs to the completion.
    if text.startswith(before):
        assert "".join(stream(name, tokens, prompt)) == text.removeprefix(before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("text", TEXTS)
def test_text_is_shown_in_whole_characters_and_at_once(name, text):
    tokens = encode(name, text)
    pieces = stream(name, tokens)
    assert "".join(pieces) == whole(name, tokens)
    if REPLACEMENT not in whole(name, tokens):
        assert not any(REPLACEMENT in piece for piece in pieces)
    for shown in range(len(tokens) + 1):
        so_far = whole(name, tokens[:shown])
        waits = so_far.endswith(REPLACEMENT) or vocabulary_of(name).may_change(tokens[shown - 1])
        assert waits or "".join(pieces[:shown]) == so_far


@pytest.mark.parametrize("name", ["metaspace", "byte_fallback", "codellama"])
def test_the_space_of_the_first_word_is_kept_behind_a_prompt(name):
    prompt = encode(name, "def f():\n")
    tokens = encode(name, "return 1")
    assert "".join(stream(name, tokens, prompt)) == " return 1"
    assert "".join(stream(name, tokens)) == "return 1"


@pytest.mark.parametrize("name", ALL)
def test_special_and_unknown_tokens_show_nothing_and_change_nothing(name):
    tokenizer = tokenizer_of(name)
    tokens = encode(name, "x = 'a b'")
    noisy = [each for token in tokens for each in (tokenizer.eos_token_id, token, len(tokenizer) + 100)]
    assert "".join(stream(name, noisy)) == whole(name, tokens)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_the_time_is_linear_in_the_number_of_tokens(name):
    # Bytes that never become a character are the worst case: nothing of them is final for long.
    byte = next(token for token in range(len(tokenizer_of(name))) if whole(name, [token]) == REPLACEMENT)

    def seconds(count):
        start = time.process_time()
        stream(name, [byte] * count)
        return time.process_time() - start

    seconds(100)
    assert seconds(16_000) < 10 * max(seconds(4_000), 0.01)


def test_a_long_row_of_bytes_at_the_end_of_the_prompt_stays_whole():
    prompt = encode("byte_fallback", "a漢字漢字")  # 12 bytes, which the completion goes on with
    tokens = encode("byte_fallback", "a漢字漢字漢x")[len(prompt) :]
    assert "".join(stream("byte_fallback", tokens, prompt)) == "漢x"


def test_an_unfinished_character_waits_and_is_shown_at_the_end():
    emoji = encode("byte_level", "😀")
    assert len(emoji) == 4
    assert stream("byte_level", emoji) == ["", "", "", "😀", ""]
    assert stream("byte_level", emoji[:2]) == ["", "", REPLACEMENT]
    x = encode("byte_level", "x")
    assert stream("byte_level", emoji[:2] + x) == ["", "", REPLACEMENT + "x", ""]

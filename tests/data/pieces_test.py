"""The quick way to ids against the tokenizer library itself."""

from __future__ import annotations

import functools
import json
import re

import hypothesis
import pytest
import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from iterpref_jax.data import pieces
from tests.data import tiny

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CUTS = {
    "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "qwen": [
        pre_tokenizers.Split(tokenizers.Regex(QWEN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "llama": [
        pre_tokenizers.Split(tokenizers.Regex(LLAMA), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "starcoder": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "deepseek": [
        pre_tokenizers.Split(tokenizers.Regex("[\r\n]"), "isolated"),
        pre_tokenizers.Split(tokenizers.Regex(r"\s?\p{L}+"), "isolated"),
        pre_tokenizers.Split(tokenizers.Regex(r"\s?\p{P}+"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
WORDS = ["def", " return", "'s", "'LL", "\n", "\r\n", "    ", "\t", " ", "x1", "007", "==", "):", "<tool>", "<too", "é"]


def _made(cut):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(CUTS[cut])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([*tiny.CORPUS, "x = 1\n\n\n        y = 100 == 2000):\n"], trainer)
    backend.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in ("<tool>", "<tool>>")])
    backend.add_special_tokens(["<end>"])
    return backend


BACKENDS = {cut: _made(cut) for cut in CUTS}
ENCODERS = {cut: pieces.BatchEncoder(backend, json.loads(backend.to_str())) for cut, backend in BACKENDS.items()}


def _library(backend, text):
    return backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("cut", CUTS)
@hypothesis.given(st.one_of(st.text(st.characters(max_codepoint=127)), st.lists(st.sampled_from(WORDS)).map("".join)))
@hypothesis.settings(max_examples=200)
def test_ids_are_those_of_the_library(cut, text):
    backend = BACKENDS[cut]
    assert ENCODERS[cut].encode([text, "x"]) == [_library(backend, text), _library(backend, "x")]


@pytest.mark.parametrize("name", tiny.REAL)
@hypothesis.given(st.lists(st.one_of(st.text(st.characters(max_codepoint=127), max_size=8), st.sampled_from(WORDS))))
@hypothesis.settings(max_examples=200, suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_ids_are_those_of_real_tokenizers(name, parts):
    encoder, backend = _real(name)
    text = "".join(parts)
    assert encoder.encode([text]) == [_library(backend, text)]


@functools.cache
def _real(name):
    backend = tiny.real(name).backend_tokenizer
    return pieces.BatchEncoder(backend, json.loads(backend.to_str())), backend


def _quick(backend):
    return pieces.Pieces(backend, json.loads(backend.to_str()))


@pytest.mark.parametrize("cut", CUTS)
def test_known_tokenizers_take_the_quick_way(cut, monkeypatch):
    quick = _quick(BACKENDS[cut])
    monkeypatch.setattr(pieces.BatchEncoder, "_by_library", lambda self, texts: [pytest.fail(text) for text in texts])
    encoder = pieces.BatchEncoder(BACKENDS[cut], json.loads(BACKENDS[cut].to_str()))
    assert encoder.encode(["x = 1<tool>\n"]) == [quick.encode("x = 1<tool>\n")]


def test_special_tokens_are_text_where_the_library_takes_them_for_text():
    backend = _made("qwen")
    backend.encode_special_tokens = True
    assert _quick(backend).encode("a<end>b") == _library(backend, "a<end>b")
    assert len(_library(backend, "a<end>b")) > 3


def test_a_tokenizer_that_cuts_in_another_way_is_refused(monkeypatch):
    monkeypatch.setattr(pieces, "BYTE_LEVEL", r" ?\p{L}+|\s+")
    with pytest.raises(ValueError, match="cuts text in another way"):
        _quick(BACKENDS["gpt2"])


def _stripping(backend):
    backend.add_tokens([tokenizers.AddedToken("<mask>", lstrip=True, normalized=False)])


def _lowercase(backend):
    backend.normalizer = tokenizers.normalizers.Lowercase()


def _punctuation(backend):
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), *CUTS["gpt2"]])


def _words(backend):
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


@pytest.mark.parametrize("change", [_stripping, _lowercase, _punctuation, _words])
def test_tokenizers_of_another_make_stay_with_the_library(change):
    backend = _made("gpt2")
    change(backend)
    with pytest.raises(ValueError):
        _quick(backend)
    encoder = pieces.BatchEncoder(backend, json.loads(backend.to_str()))
    assert encoder.encode(["Print <mask> (x)"]) == [_library(backend, "Print <mask> (x)")]


def test_a_full_table_starts_anew(monkeypatch):
    monkeypatch.setattr(pieces, "TABLE_SIZE", 2)
    quick = _quick(BACKENDS["qwen"])
    text = "def add(a, b):\n    return a + b\n"
    assert quick.encode(text) == quick.encode(text) == _library(BACKENDS["qwen"], text)


@pytest.mark.parametrize("expression", [r"\s", r"(?!q{6})[\s\S]"])
def test_what_lies_between_matches_is_a_piece_too(expression):
    # The second one leaves something out in a text that the probe does not hold.
    cut = pieces._Cut(expression)
    for text in ("two words", "aqqqqqqb", "q" * 9):
        assert "".join(cut(text)) == text
        assert cut(text) == [piece for piece in re.split(f"({expression})", text) if piece]

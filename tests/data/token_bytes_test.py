"""The bytes of tokens: GPT-2's alphabet, SentencePiece marks, and tokens that are not what they seem."""

from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from iterpref_jax.data import token_bytes
from tests.data import tiny


def _spec(backend):
    return json.loads(backend.to_str())


def test_the_alphabet_is_the_one_of_the_tokenizers_library():
    assert set(token_bytes.ALPHABET) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(token_bytes.ALPHABET.values()) == list(range(256))
    assert token_bytes.ALPHABET["Ġ"] == ord(" ")
    assert token_bytes.ALPHABET["Ċ"] == ord("\n")


@pytest.mark.parametrize("source", [tiny.byte_level_json, tiny.metaspace_json])
def test_single_tokens_have_the_bytes_that_they_decode_to(source):
    backend = tokenizers.Tokenizer.from_str(source())
    table = token_bytes.token_bytes(backend, _spec(backend))
    x = backend.token_to_id("x")
    for i, expected in enumerate(table):
        # Behind another token, so that a decoder that strips the first space does not.
        decoded = backend.decode([x, i], skip_special_tokens=False).removeprefix("x")
        assert decoded == expected.decode(errors="replace"), backend.id_to_token(i)


def test_byte_fallback_tokens_are_one_byte():
    spec = json.loads(tiny.metaspace_json())
    spec["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    token = "<0xE9>"
    spec["model"]["vocab"][token] = len(spec["model"]["vocab"])
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    assert token_bytes.token_bytes(backend, spec)[backend.token_to_id(token)] == b"\xe9"


def test_an_added_token_that_stands_for_another_byte_is_not_used():
    # deepseek-coder lists 'õ' (U+00F5) for the byte 0xF5; used for the letter, it would not decode to it.
    backend = tokenizers.Tokenizer.from_str(tiny.byte_level_json())
    backend.add_tokens(["õ", "<think>"])
    assert backend.decode(backend.encode("õ").ids) != "õ"
    table = token_bytes.token_bytes(backend, _spec(backend))
    plain = token_bytes.plain_backend(_spec(backend), table)
    assert plain.decode(plain.encode("õ").ids) == "õ"
    assert len(plain.encode("<think>").ids) == 1


def test_special_tokens_are_plain_text_and_ids_stay_the_same():
    backend = tokenizers.Tokenizer.from_str(tiny.byte_level_json(bos=True))
    plain = token_bytes.plain_backend(_spec(backend), token_bytes.token_bytes(backend, _spec(backend)))
    assert backend.token_to_id("</s>") not in plain.encode("a</s>").ids
    assert plain.get_vocab() == backend.get_vocab()
    assert plain.encode("def f").ids == backend.encode("def f", add_special_tokens=False).ids


@pytest.mark.parametrize("nfc", [True, False])
def test_the_unicode_form_is_read_off_the_normalizer(nfc):
    spec = json.loads(tiny.byte_level_json(nfc=nfc))
    assert token_bytes.unicode_form(spec) == ("NFC" if nfc else "")
    spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}
    assert token_bytes.unicode_form(spec) == "NFKC"

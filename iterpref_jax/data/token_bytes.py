"""Which bytes of the text a token stands for, read off the tokenizer's vocabulary and decoder.

With this table a text's tokens are placed in it by a running sum, and joining their bytes proves the placement: no
character offsets are needed, which tokenizers report wrongly or not at all in corners (byte fallback, trimmed spaces).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import tokenizers

from iterpref_jax.errors import UserError

# Decoders that turn every token into fixed bytes; "Strip" removes only the space that a guard keeps apart.
LOSSLESS = {"ByteLevel", "Sequence", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def token_bytes(backend: tokenizers.Tokenizer, spec: dict[str, Any]) -> list[bytes]:
    """Returns the bytes of every id (empty for ids without a token); `spec` is the backend's parsed JSON.

    Raises UserError if the decoder is one whose tokens have no bytes of their own.
    """
    nodes = list(_nodes(spec["decoder"]))
    kinds = {node["type"] for node in nodes}
    if not kinds or kinds - LOSSLESS:
        wanted = f"only byte-level and SentencePiece-like ones do ({', '.join(sorted(LOSSLESS))})"
        raise UserError(f"the tokenizer's decoder {sorted(kinds)} does not give text back byte for byte; {wanted}")
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    to_bytes = _byte_level if "ByteLevel" in kinds else _with_spaces(nodes)
    for token, i in vocabulary.items():
        table[i] = to_bytes(token)
    return table


def _nodes(part: Any) -> Iterator[dict]:
    """Yields every typed node of a tokenizer's JSON, outermost first."""
    if isinstance(part, dict):
        if "type" in part:
            yield part
        part = list(part.values())
    if isinstance(part, list):
        for child in part:
            yield from _nodes(child)


def unicode_form(spec: dict[str, Any]) -> str:
    """Returns the Unicode normal form that the tokenizer puts text into ("NFC", ...), or an empty string."""
    kinds = (node["type"] for node in _nodes(spec["normalizer"]))
    return next((kind for kind in kinds if kind in ("NFC", "NFD", "NFKC", "NFKD")), "")


def plain_backend(spec: dict[str, Any], table: list[bytes]) -> tokenizers.Tokenizer:
    """Returns the tokenizer as it treats completions: special tokens are plain text there, nothing is added.

    Added tokens that do not give their own text back count as special, too (deepseek-coder has 'õ' for byte 0xF5).
    Other added tokens stay tokens: they are what the model itself writes for this text.
    """
    backend = tokenizers.Tokenizer.from_str(json.dumps(plain_spec(spec, table)))
    backend.encode_special_tokens = True
    return backend


def plain_spec(spec: dict[str, Any], table: list[bytes]) -> dict[str, Any]:
    """Returns the JSON of `plain_backend`."""
    added = [
        token | {"special": token["special"] or table[token["id"]] != token["content"].encode()}
        for token in spec["added_tokens"]
    ]
    return spec | {"added_tokens": added, "post_processor": None, "padding": None, "truncation": None}


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable Latin-1 bytes are themselves, the other 68 are U+0100 and up."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = sorted(set(range(256)) - set(kept))
    return {chr(b): b for b in kept} | {chr(0x100 + i): b for i, b in enumerate(moved)}


ALPHABET = _byte_level_alphabet()
BYTE_CHARS = {byte: char for char, byte in ALPHABET.items()}


def _byte_level(token: str) -> bytes:
    try:
        return bytes([ALPHABET[char] for char in token])
    except KeyError:  # an added token is written in plain characters
        return token.encode()


def _with_spaces(nodes: list[dict]):
    spaces = [node["replacement"] for node in nodes if node["type"] == "Metaspace"]
    replaced = [(node["pattern"]["String"], node["content"]) for node in nodes if node["type"] == "Replace"]
    replaced += [(mark, " ") for mark in spaces]
    has_bytes = any(node["type"] == "ByteFallback" for node in nodes)

    def to_bytes(token: str) -> bytes:
        if has_bytes and (byte := BYTE_TOKEN.match(token)):
            return bytes([int(byte[1], 16)])
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    return to_bytes

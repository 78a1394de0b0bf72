"""ASCII text to token ids several times as fast as the tokenizer library, and to the same ids.

Byte-level tokenizers cut text into pieces by a regular expression and encode each piece by itself. Nearly all of the
library's time goes into the cutting. Here Python's `re` cuts, a table remembers the ids of each piece, and the
library's own model encodes pieces that are new. Text that is not ASCII, and tokenizers of any other make, stay with the
library; whether both cut alike is tried out once for every tokenizer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers

from iterpref_jax.data.token_bytes import BYTE_CHARS

# Pieces that are remembered; programs repeat a few ten thousand.
TABLE_SIZE = 1 << 20
# The expression of the pre-tokenizer ByteLevel (GPT-2's).
BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Unicode classes as they are in ASCII, written so that they stand inside and outside of brackets.
ASCII_CLASSES = {"L": "A-Za-z", "N": "0-9", "Lu": "A-Z", "Ll": "a-z", "P": r"!-#%-*,-/:;?@\[-\]_{}"}
NORMAL_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# Every pair of characters, every four of the kinds that the expressions of known tokenizers tell apart, contractions.
KINDS = "sS'1 \n\r\t.$"
PROBE = "".join(
    "".join(run)
    for characters, length in ((map(chr, range(128)), 2), (KINDS, 4), (("'", *"sStTreRvVemMlLdD"), 3))
    for run in itertools.product(characters, repeat=length)
)


class Pieces:
    """A tokenizer's way with ASCII text. Raises ValueError for one of another make."""

    def __init__(self, backend: tokenizers.Tokenizer, spec: dict[str, Any]):
        self._model, self._ids = backend.model, {}
        self._cuts = [_Cut(expression) for expression in _cuts(spec)]
        added = [token for token in spec["added_tokens"] if not (token["special"] and backend.encode_special_tokens)]
        self._added = _added_pattern(added)
        self._added_ids = {token["content"]: (token["id"],) for token in added}
        if self.encode(PROBE) != backend.encode(PROBE, add_special_tokens=False).ids:
            raise ValueError("it cuts text in another way")
        self._ids.clear()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of an ASCII text, without those that a post-processor adds."""
        if self._added is None:
            return self._segment(text)
        parts = self._added.split(text)
        if len(parts) == 1:
            return self._segment(text)
        # Odd parts are added tokens.
        found = [self._added_ids[part] if odd % 2 else self._segment(part) for odd, part in enumerate(parts)]
        return list(itertools.chain.from_iterable(found))

    def _segment(self, text: str) -> list[int]:
        pieces = [text]
        for cut in self._cuts:
            # Most tokenizers cut once: to copy that cut's pieces is a fiftieth of the time that tokens take.
            pieces = cut(pieces[0]) if len(pieces) == 1 else [piece for part in pieces for piece in cut(part)]
        try:
            return list(itertools.chain.from_iterable(map(self._ids.__getitem__, pieces)))
        except KeyError:
            self._learn(pieces)
            return [i for piece in pieces for i in self._ids[piece]]

    def _learn(self, pieces: Iterable[str]) -> None:
        if len(self._ids) > TABLE_SIZE:
            self._ids.clear()
        for piece in pieces:
            if piece not in self._ids:
                self._ids[piece] = tuple(token.id for token in self._model.tokenize(piece.translate(BYTE_CHARS)))


class _Cut:
    """Cuts a text into the matches of an expression and what lies between them."""

    def __init__(self, expression: str):
        self._around = re.compile(f"({expression})", re.ASCII)
        matches = re.compile(expression, re.ASCII)
        # Most expressions leave nothing between their matches; to find them alone is quicker.
        self._matches = matches if not matches.groups and "".join(matches.findall(PROBE)) == PROBE else None

    def __call__(self, text: str) -> list[str]:
        if self._matches is not None:
            found = self._matches.findall(text)
            if len("".join(found)) == len(text):
                return found
        return [piece for piece in self._around.split(text) if piece]


def _cuts(spec: dict[str, Any]) -> list[str]:
    """Returns the expressions that cut a text, each applied to what the one before left."""
    normalizer, model, first = spec["normalizer"], spec["model"], spec["pre_tokenizer"] or {}
    if (normalizer and normalizer["type"] not in NORMAL_FORMS) or model["type"] != "BPE" or model.get("dropout"):
        raise ValueError("it changes ASCII text, or is no BPE")
    steps = first["pretokenizers"] if first.get("type") == "Sequence" else [first]
    if not steps or steps[-1].get("type") != "ByteLevel":
        raise ValueError("its pieces are not of bytes")
    return [_in_ascii(cut) for step in steps if (cut := _cut(step))]


def _cut(step: dict[str, Any]) -> str:
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return BYTE_LEVEL if step["use_regex"] else ""
    if step["type"] == "Digits":
        return r"\p{N}" if step["individual_digits"] else r"\p{N}+"
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        return step["pattern"]["Regex"]
    raise ValueError(f"{step['type']} is not known here")


def _in_ascii(expression: str) -> str:
    r"""Returns an expression for `re` that is equal in ASCII text: \p{L} becomes [A-Za-z], and A-Za-z in brackets."""
    inside, parts = False, []
    for part in re.split(r"(\\p\{\w+\}|\\.|[\[\]])", expression):
        if part.startswith(r"\p"):
            if part[3:-1] not in ASCII_CLASSES:
                raise ValueError(f"{part} is not known here")
            members = ASCII_CLASSES[part[3:-1]]
            part = members if inside else f"[{members}]"
        elif part in ("[", "]"):
            inside = part == "["
        parts.append(part)
    return "".join(parts)


def _added_pattern(added: Sequence[dict[str, Any]]) -> re.Pattern[str] | None:
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] or token["normalized"] for token in added):
        raise ValueError("its added tokens take text around them")
    # Of two that begin at one place, the library takes the longer.
    contents = sorted((token["content"] for token in added if token["content"].isascii()), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, contents))})") if contents else None


class BatchEncoder:
    """Encodes texts with the quick way where there is one, and everything else with the library."""

    def __init__(self, backend: tokenizers.Tokenizer, spec: dict[str, Any]):
        self._backend = backend
        try:
            self._pieces = Pieces(backend, spec)
        except (ValueError, re.error):
            self._pieces = None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, without those that a post-processor adds."""
        if self._pieces is None:
            return self._by_library(texts)
        others = [text for text in texts if not text.isascii()]
        found = iter(self._by_library(others))
        return [self._pieces.encode(text) if text.isascii() else next(found) for text in texts]

    def _by_library(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

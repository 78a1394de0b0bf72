"""The four forms of preference data that TRL defines: explicit or implicit prompt, strings or conversations.

Source: `trl.data_utils.extract_prompt` and `maybe_extract_prompt` (TRL 0.12 and later) define what an implicit prompt
is. Two of its corners are kept on purpose and one is not:
- kept: when one completion is the beginning of the other, the last shared character (or message) stays in the
  completions, so neither is empty;
- kept: a space before the first difference belongs to the completions;
- not kept: completions that differ at once. TRL looks at `chosen[-1]` there and may move all of `chosen` but its last
  character into the prompt; here the row has no prompt and is refused.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

from iterpref_jax.codeflow import fences, rows
from iterpref_jax.errors import UserError, did_you_mean

Message = dict[str, str]
Prompt = str | tuple[Message, ...]

_FIELDS = ("prompt", "chosen", "rejected")
_OPTIONAL = ("pair_id", "task", "form", "meta")
# Columns in which other data sets keep the prompt. Taking the prompt from strings that merely begin alike while one
# of these stands next to them would train without the question.
_OTHER_PROMPT_NAMES = ("instruction", "question", "problem", "query", "input", "context", "messages")

_Sequence = TypeVar("_Sequence", str, tuple[Message, ...])


def split_preference(row: rows.Row, place: str) -> tuple[Prompt, str, str]:
    """Returns `(prompt, chosen, rejected)`: a string or messages, and the two answers as text.

    Raises:
      UserError: a misspelt or missing column, a wrong type, or an answer that is not one final assistant message.
    """
    _refuse_misspelt(row, place)
    chosen, rejected = (_side(row, name, place) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UserError(f"{place}: the fields 'chosen' and 'rejected' must both be strings or both lists of messages")
    prompt = None if row.get("prompt") is None else _side(row, "prompt", place)
    if isinstance(chosen, str):
        assert isinstance(rejected, str)
        return _split_strings(row, prompt, chosen, rejected, place)
    assert isinstance(rejected, tuple)
    return _split_messages(prompt, chosen, rejected, place)


def _before_open_fence(text: str, length: int) -> int:
    """Moves a cut that lies inside a fenced block back to its opening fence: the answer's code is no prompt.

    TRL cuts at the first character that differs, in the middle of a program both sides begin with.
    """
    block = fences.open_block(text[:length])
    return length if block is None else block.start


def shared_length(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Returns how much of two completions is their implicit prompt (see the module's docstring for the corners).

    >>> shared_length("The sky is blue.", "The sky is green.")
    10
    """
    pairs = zip(chosen, rejected, strict=False)
    length = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
    if length is None:
        return max(0, min(len(chosen), len(rejected)) - 1)
    return length - 1 if length and chosen[length - 1] == " " else length


def _split_strings(
    row: rows.Row, prompt: Prompt | None, chosen: str, rejected: str, place: str
) -> tuple[Prompt, str, str]:
    if prompt is not None:
        return prompt, chosen, rejected
    for name in _OTHER_PROMPT_NAMES:
        if name in row:
            raise UserError(
                f"{place}: no field 'prompt', but a field {name!r}: rename it to 'prompt', or delete it "
                "if both answers repeat the prompt at their beginning"
            )
    return _without_shared(chosen, rejected, place)


def _split_messages(
    prompt: Prompt | None, chosen: tuple[Message, ...], rejected: tuple[Message, ...], place: str
) -> tuple[Prompt, str, str]:
    if isinstance(prompt, tuple):
        chosen, rejected = (
            side[len(prompt) :] if side[: len(prompt)] == prompt else side for side in (chosen, rejected)
        )
    else:
        # A string beside conversations repeats what they begin with (TRL ignores it too).
        prompt, chosen, rejected = _without_shared(chosen, rejected, place)
    return prompt, _answer(chosen, "chosen", place), _answer(rejected, "rejected", place)


def _without_shared(chosen: _Sequence, rejected: _Sequence, place: str) -> tuple[_Sequence, _Sequence, _Sequence]:
    shared = length = shared_length(chosen, rejected)
    if isinstance(chosen, str):
        length = _before_open_fence(chosen, length)
    if not length:
        why = "have nothing in front of the code block that both begin with" if shared else "do not begin alike"
        raise UserError(
            f"{place}: no prompt: the fields 'chosen' and 'rejected' {why}; add a field 'prompt' "
            "of the same form (a string for strings, a list of messages for conversations)"
        )
    return chosen[:length], chosen[length:], rejected[length:]


def _side(row: rows.Row, name: str, place: str) -> Prompt:
    value = row.get(name)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        came = rows.shown(value) if name in row else "nothing"
        raise UserError(f"{place}: the field {name!r} must be a string or a list of messages, not {came}")
    if not value:
        raise UserError(f"{place}: the field {name!r} is an empty list; wanted at least one message")
    return tuple(_message(item, f"{place}: {name}[{index}]") for index, item in enumerate(value))


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise UserError(f'{place} must be a message {{"role": ..., "content": ...}}, not {rows.shown(item)}')
    # Parquet gives every message of a column all keys that any of them has, as null.
    given = {key: value for key, value in item.items() if value is not None}
    rows.refuse_unknown(given, ("role", "content"), place, "a message holds only 'role' and 'content'")
    return {name: rows.take(given, name, str, place) for name in ("role", "content")}


def _answer(messages: tuple[Message, ...], name: str, place: str) -> str:
    roles = [message["role"] for message in messages]
    if roles == ["assistant"]:
        return messages[0]["content"]
    came = f"the roles {', '.join(roles)}{did_you_mean(roles[0], ['assistant'])}" if roles else "nothing"
    raise UserError(
        f"{place}: after the prompt, {name!r} must be one final assistant message, not {came}; "
        "two conversations that part before their last message are not one pair: leave the row out"
    )


def _refuse_misspelt(row: rows.Row, place: str) -> None:
    missing = [field for field in (*_FIELDS, *_OPTIONAL) if row.get(field) is None]
    for name, field in itertools.product(row, missing):
        # Of fields that may be missing the spelling only: their columns have many names.
        is_meant = _spelling(name) == _spelling(field) if field in _OPTIONAL else _looks_like(name, field)
        if name not in (*_FIELDS, *_OPTIONAL) and is_meant:
            raise UserError(f"{place}: unknown field {name!r}{did_you_mean(_spelling(name), [field])}")


def _spelling(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _looks_like(name: str, field: str) -> bool:
    # `prompt_id` and `chosen_score` are columns of their own: only names of nearly the same length are misspellings.
    alike = difflib.SequenceMatcher(None, name.lower(), field).ratio() >= 0.8
    return alike and abs(len(name) - len(field)) <= 2

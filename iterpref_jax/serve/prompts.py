"""Prompts and messages to token ids, as the model reads them at inference; tokens back to bytes for log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
import tokenizers

from iterpref_jax.serve.faults import ApiError, too_long
from iterpref_jax.serve.protocol import Chat, Prompt


class Prompts:
    """A fast transformers tokenizer for prompts of at most `context` tokens with ids below `vocab_size`."""

    def __init__(self, tokenizer: Any, *, context: int, vocab_size: int):
        self._tokenizer, self._context, self._vocab_size = tokenizer, context, vocab_size
        # A copy: the sampler's thread decodes with the tokenizer's own, and nothing may cut a prompt unasked.
        self._backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Returns the ids of a prompt; text gets the special tokens that the tokenizer puts in front of text."""
        if isinstance(prompt, str):
            return self._ids(prompt, special=True, param="prompt")
        unknown = next((token for token in prompt if not 0 <= token < self._vocab_size), None)
        if unknown is not None:
            message = f"token id {unknown} does not exist: the model's ids are 0 to {self._vocab_size - 1}"
            raise ApiError(message, param="prompt", code="invalid_value")
        return _not_empty(prompt, "prompt")

    def render(self, chat: Chat) -> tuple[int, ...]:
        """Returns the ids of a conversation up to where the answer begins, by the tokenizer's chat template."""
        if not self._tokenizer.chat_template:
            message = (
                "The served model's tokenizer has no chat template: use /v1/completions, or serve a folder with a "
                "template (chat_template.jinja)"
            )
            raise ApiError(message, param="messages", code="no_chat_template")
        try:
            text = self._tokenizer.apply_chat_template(
                list(chat.messages),
                tokenize=False,
                add_generation_prompt=chat.begins_answer,
                continue_final_message=chat.continues_last,
            )
        # ValueError: a template that leaves the last message out, so that there is nothing to go on with.
        except (jinja2.TemplateError, ValueError) as error:
            raise ApiError(f"The chat template refuses these messages: {error}", param="messages") from error
        # The template writes the special tokens itself.
        return self._ids(text, special=False, param="messages")

    def room(self, prompt: Sequence[int], max_tokens: int | None, param: str) -> int:
        """Returns how many tokens may follow `prompt`: `max_tokens`, or where that is None all that fit."""
        left = self._context - len(prompt)
        if left < (max_tokens or 1):
            raise too_long(len(prompt), max_tokens or 0, self._context, param)
        return max_tokens or left

    def _ids(self, text: str, *, special: bool, param: str) -> tuple[int, ...]:
        return _not_empty(tuple(self._backend.encode(text, add_special_tokens=special).ids), param)


def _not_empty(ids: tuple[int, ...], param: str) -> tuple[int, ...]:
    if not ids:
        raise ApiError(f"{param!r} has no token, so nothing predicts the first one", param=param, code="invalid_value")
    return ids

"""Continuous batching: requests take slots of one cache as they come free, and all slots decode together.

waiting ──> free slot: prompt computed, or copied from a slot that has it ──> rounds of `chunk` steps ──> pieces

A request's tokens depend on the request alone: its token i lies in column i of its slot, its prompt is padded to a
length that follows from its own, and a draw's key from its seed.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from iterpref_jax.decode import loop
from iterpref_jax.decode.detokenize import Vocabulary
from iterpref_jax.decode.request import MAX_STOP_TOKENS, Completion, Piece, Request, SamplerSettings, join
from iterpref_jax.decode.shapes import Shapes
from iterpref_jax.decode.slots import Running, Slot, place
from iterpref_jax.decode.stopping import Transcript
from iterpref_jax.errors import UserError
from iterpref_jax.models.cache import CachedDecoder
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.transformer import Params


class Sampler:
    """Runs requests on `settings.slots` slots; not safe to call from two threads at once."""

    def __init__(
        self,
        decoder: Decoder,
        params: Params,
        tokenizer,
        settings: SamplerSettings,
        eos_ids: Sequence[int] | None = None,
        *,
        donate: bool = False,
    ):
        """Takes a fast `transformers` tokenizer; its end-of-sequence token ends completions unless `eos_ids` do.

        With `donate` the arrays of `params` are deleted as they are taken over: two copies need not fit in memory.

        Raises:
            UserError: slots do not divide over the mesh, it splits rows' tokens, or no token ends a sequence.
        """
        if eos_ids is None:
            eos_ids = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        shards = check_shapes(decoder, settings, eos_ids)
        self._settings, self._eos_ids = settings, tuple(eos_ids)
        self._vocabulary = Vocabulary(tokenizer)
        self._model = CachedDecoder(decoder)
        self._params = self._model.prepare(params, donate=donate)
        self._cache = loop.empty_cache(self._model, settings.slots, settings.context)
        self._shapes = Shapes(
            slots=settings.slots, context=settings.context, tokens=settings.prefill_tokens, row_shards=shards
        )
        self._slots = [Slot(number) for number in range(settings.slots)]
        self._waiting: collections.deque[Running] = collections.deque()
        self._ids = itertools.count()

    @property
    def busy(self) -> bool:
        """True while a request waits or runs."""
        return bool(self._waiting) or any(slot.running for slot in self._slots)

    def submit(self, request: Request) -> int:
        """Queues a request and returns its id.

        Raises:
            UserError: the prompt and `max_tokens` do not fit in the context, or a token is not in the vocabulary.
        """
        request.check_fits(self._settings.context)
        vocab = self._model.decoder.config.vocab_size
        if min(request.prompt) < 0 or max(request.prompt) >= vocab:
            raise UserError(f"prompt holds tokens outside of the model's vocabulary of {vocab}: is it the tokenizer's?")
        transcript = Transcript(request, self._vocabulary, self._eos_ids)
        request_id = next(self._ids)
        self._waiting.append(Running(request_id, request, transcript, request.prompt[-1]))
        return request_id

    def cancel(self, request_id: int) -> None:
        """Drops a request; one that has ended already is left alone."""
        self._waiting = collections.deque(each for each in self._waiting if each.request_id != request_id)
        for slot in self._slots:
            if slot.running and slot.running.request_id == request_id:
                slot.running = None

    def step(self) -> list[Piece]:
        """Runs one round and returns what every running request gained, in the order of the slots."""
        self._fill()
        running = [slot for slot in self._slots if slot.running]
        if not running:
            return []
        steps = self._settings.chunk
        self._cache, drawn = loop.decode(self._model, self._params, self._cache, self._rows(), steps=steps)
        chunk = jax.device_get(drawn)
        return [self._gain(slot, chunk) for slot in running]

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[int, Completion]]:
        """Yields (index of the request, completion) as completions end; the sampler must be idle before."""
        if self.busy:
            raise ValueError("generate() needs a sampler without other requests: their pieces would be lost")
        index: dict[int, int] = {}
        pieces: dict[int, list[Piece]] = collections.defaultdict(list)
        try:
            for number, request in enumerate(requests):
                index[self._submit_numbered(number, request)] = number
            while self.busy:
                for piece in self.step():
                    pieces[piece.request_id].append(piece)
                    if piece.finish_reason:
                        yield index[piece.request_id], join(pieces.pop(piece.request_id))
        finally:
            self._waiting.clear()
            for slot in self._slots:
                slot.running = None

    def _submit_numbered(self, number: int, request: Request) -> int:
        try:
            return self.submit(request)
        except UserError as error:
            raise UserError(f"request {number}: {error}") from error

    def _fill(self) -> None:
        """Gives free slots to waiting requests and brings their prompts into the cache."""
        placed = place(self._slots, self._waiting)
        for prompts in self._shapes.prefills(placed):
            self._cache = loop.prefill(self._model, self._params, self._cache, *prompts)
        for columns, source_R, slot_R in self._shapes.copies(placed):
            self._cache = loop.copy(self._model, self._cache, source_R, slot_R, columns=columns)

    def _rows(self) -> loop.Rows:
        # A free slot computes, too: greedily, which is cheapest, and behind its prefix, which may be needed again.
        rows = loop.idle_rows([len(slot.prefix) for slot in self._slots])
        for slot in self._slots:
            if slot.running:
                loop.set_row(rows, slot.number, slot.running)
        return rows

    def _gain(self, slot: Slot, chunk: loop.Chunk) -> Piece:
        """Takes over what a slot drew; frees the slot if its request has ended."""
        running = slot.running
        assert running is not None
        drawn = chunk.drawn_B[slot.number] - running.drawn
        tokens, logprobs = chunk.token_CB[:drawn, slot.number].tolist(), chunk.logp_CB[:drawn, slot.number].tolist()
        if not np.isfinite(logprobs).all():
            raise UserError("the model gives NaN or infinite log-probs; check its weights")
        text, used, reason = running.transcript.add(tokens)
        running.drawn += used
        running.last_token = tokens[-1]
        if reason:
            slot.running = None
        return Piece(
            request_id=running.request_id,
            text=text,
            tokens=tuple(tokens[:used]),
            logprobs=tuple(logprobs[:used]),
            finish_reason=reason,
        )


def check_shapes(decoder: Decoder, settings: SamplerSettings, eos_ids: Sequence[int]) -> int:
    """Returns how many ways the mesh splits rows; see `Sampler` for the errors, which come before weights are read."""
    if not eos_ids or len(eos_ids) > MAX_STOP_TOKENS:
        raise UserError(f"wanted 1 to {MAX_STOP_TOKENS} end-of-sequence tokens, got {list(eos_ids)}; give eos_ids")
    if decoder.placement is None:
        return 1
    if (parts := decoder.placement.parts("token_share")) > 1:
        raise UserError(
            f"mesh.sequence is {parts}, but decoding computes one token of each row at a time: set it to 1, and "
            "give its devices to mesh.tensor or mesh.fsdp"
        )
    shards = decoder.placement.row_shards()
    if settings.slots % shards:
        raise UserError(
            f"decode.slots is {settings.slots}, but the mesh splits rows {shards} ways; make it a multiple of {shards}"
        )
    return shards

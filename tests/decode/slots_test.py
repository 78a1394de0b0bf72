"""Which slot a request takes, and that its prompt is in there when it starts."""

import collections

import hypothesis
import hypothesis.strategies as st

from iterpref_jax.decode.request import Request
from iterpref_jax.decode.shapes import Shapes
from iterpref_jax.decode.slots import Placed, Running, Slot, place

SLOTS, CONTEXT = 4, 40
SHAPES = Shapes(slots=SLOTS, context=CONTEXT, tokens=32, row_shards=1)


def running(prompt):
    return Running(0, Request(prompt=prompt, max_tokens=1), None, prompt[-1])


class Columns:
    """The cache as a list of tokens a slot, changed as the devices change it."""

    def __init__(self):
        self.held = [[None] * CONTEXT for _ in range(SLOTS)]
        self.prefilled = 0

    def fill(self, placed):
        for tokens_RT, length_R, slot_R in SHAPES.prefills(placed):
            self._write(slot_R, tokens_RT.tolist())
            self.prefilled += int((length_R > 0).sum())
        for columns, source_R, slot_R in SHAPES.copies(placed):
            self._write(slot_R, [self.held[source][:columns] for source in source_R])

    def _write(self, slot_R, rows):
        for slot, row in zip(slot_R, rows, strict=True):
            if slot < SLOTS:
                self.held[slot][: len(row)] = row

    def decode(self, slots):
        """One round: everything behind a prefix is overwritten."""
        for slot in slots:
            behind = slice(len(slot.prefix), None)
            self.held[slot.number][behind] = [-1] * (CONTEXT - len(slot.prefix))


PROMPTS = [[1], [2], [1, 2], [3, 2], [1, 2, 3], list(range(20)), [*range(19), 5], list(range(1, 30))]
rounds = st.lists(
    st.tuples(st.lists(st.sampled_from(PROMPTS), max_size=5), st.sets(st.integers(0, SLOTS - 1))), max_size=12
)


@hypothesis.settings(max_examples=300)
@hypothesis.given(rounds)
def test_every_running_slot_holds_its_prompt_and_nobody_overtakes(rounds):
    slots, waiting, cache, submitted = [Slot(number) for number in range(SLOTS)], collections.deque(), Columns(), []
    for prompts, ended in rounds:
        new = [running(prompt) for prompt in prompts]
        waiting += new
        submitted += new
        cache.fill(place(slots, waiting))
        assert not waiting or all(slot.running for slot in slots), "a slot is free while a request waits"
        assert list(waiting) == submitted[len(submitted) - len(waiting) :]
        for slot in slots:
            if slot.running:
                assert cache.held[slot.number][: len(slot.prefix)] == list(slot.running.request.prompt[:-1])
            assert cache.held[slot.number][: len(slot.prefix)] == list(slot.prefix)
        cache.decode(slots)
        for number in ended:
            slots[number].running = None


def test_a_prompt_is_computed_once_while_a_slot_holds_it():
    slots, cache = [Slot(number) for number in range(SLOTS)], Columns()
    waiting = collections.deque(running(PROMPTS[5]) for _ in range(9))
    while waiting:
        cache.fill(place(slots, waiting))
        for slot in slots:
            slot.running = None
    assert cache.prefilled == 1


def test_the_shape_of_a_prompt_follows_from_its_own_length():
    def shapes(count, length):
        slots = [Slot(number, prefix=(1,) * length) for number in range(count)]
        return {prompts.tokens_RT.shape for prompts in SHAPES.prefills(Placed(prefills=slots))}

    for length, shape in {1: (2, 16), 16: (2, 16), 17: (1, 32), 32: (1, 32), 33: (1, 40), 39: (1, 40)}.items():
        assert shapes(1, length) == shapes(3, length) == {shape}


def test_rows_divide_over_the_mesh():
    shapes = Shapes(slots=16, context=4096, tokens=512, row_shards=8)
    assert [shapes.rows(columns) for columns in (16, 32, 64, 512, 4096)] == [16, 16, 8, 8, 8]

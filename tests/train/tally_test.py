"""Every second of a command belongs to one part, and compiling is told apart from what it was for."""

import time

import jax
import jax.numpy as jnp
import pytest

from iterpref_jax.train.tally import PARTS, Tally, _Spans


def test_the_parts_add_up_to_the_time_of_the_pieces():
    tally = Tally(time.monotonic() - 5.0)
    pieces = [tally.ends("start"), tally.ends("update", input_wait=0.0), tally.ends("other")]
    elapsed, seconds = tally.seconds()
    assert list(seconds) == list(PARTS)
    assert sum(seconds.values()) == pytest.approx(sum(pieces))
    assert sum(pieces) <= elapsed
    assert seconds["start"] >= 5.0


def test_waits_for_input_are_no_updates():
    tally = Tally(time.monotonic() - 2.0)
    spent = tally.ends("update", input_wait=0.5)
    seconds = tally.seconds()[1]
    assert seconds["input_wait"] == 0.5
    assert seconds["update"] == pytest.approx(spent - 0.5)


def test_what_compiles_within_a_piece_counts_as_compilation():
    tally = Tally()
    with tally.hears_compilation():
        began = time.monotonic()
        compiled = jax.jit(lambda x: jnp.sin(x @ x.T).sum()).lower(jnp.ones((16, 7))).compile()
        took = time.monotonic() - began
        compiled(jnp.ones((16, 7))).block_until_ready()
        tally.ends("evaluation")
    seconds = tally.seconds()[1]
    # Most of the time that tracing, lowering and compiling took, and none of it twice.
    assert 0.3 * took < seconds["compile"] <= sum(seconds.values())
    assert seconds["evaluation"] == pytest.approx(sum(seconds.values()) - seconds["compile"])


def test_nobody_listens_after_the_session():
    tally = Tally()
    with tally.hears_compilation():
        pass
    jax.jit(lambda x: jnp.cos(x) + 3)(jnp.ones(5))
    tally.ends("other")
    assert tally.seconds()[1]["compile"] == 0.0


@pytest.mark.parametrize(
    ("spans", "covered"),
    [
        ([(1.0, 1.0), (3.0, 1.0)], 2.0),  # one after the other: 0-1, 2-3
        ([(1.0, 0.5), (2.0, 0.5), (3.0, 3.0)], 3.0),  # two within a third: 0-3
        ([(1.0, 1.0), (2.0, 0.5), (3.0, 2.0)], 3.0),  # 0-1, then 1.5-2 within 1-3
    ],
)
def test_a_compilation_within_another_counts_once(spans, covered):
    heard = _Spans()
    for ended, seconds in spans:
        heard.add(ended, seconds)
    assert heard.take() == covered
    assert heard.take() == 0.0

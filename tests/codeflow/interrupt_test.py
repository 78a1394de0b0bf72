"""SIGTERM ends work as Ctrl-C does, wherever the signal meets it."""

import asyncio
import os
import signal

import pytest

from iterpref_jax.codeflow.interrupt import sigterm_interrupts


@pytest.mark.parametrize("ignored", [False, True])
def test_sigterm_interrupts_also_a_background_job_that_ignores_ctrl_c(ignored):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_lets_an_event_loop_end_its_tasks_first():
    ended = []

    async def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0)
            ended.append("well")

    with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
        asyncio.run(main())
    assert ended == ["well"]

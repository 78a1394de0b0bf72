"""A process that asks is killed in the middle and started again: no answer that it had is paid twice."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from iterpref_jax.codeflow.endpoint import ANSWER, open_journal
from tests.codeflow.endpoint.asking import ask_of, with_client
from tests.support.llm_server import say, serving

ROOT = Path(__file__).parents[3]
ASKS, CONCURRENCY = 60, 4
PROGRAM = "import sys; from tests.codeflow.endpoint.crash_test import ask_all; ask_all(*sys.argv[1:])"


def ask_all(path, url):
    """Asks everything and says the number of each answer that was returned."""

    async def use(client):
        async def one(number):
            answer = await client.ask(ask_of(f"question {number}"))
            print(number, answer.text, flush=True)

        await asyncio.gather(*map(one, range(ASKS)))

    with_client(path, url, use, concurrency=CONCURRENCY)


def start(path, url):
    words = [sys.executable, "-c", PROGRAM, str(path), url]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def read(lines):
    return dict(line.split(maxsplit=1) for line in lines)


@pytest.mark.parametrize("after", [1, 17])
def test_after_kill_9_no_answer_that_was_returned_is_paid_again_and_all_are_the_same(tmp_path, after):
    path = tmp_path / "journal.sqlite"
    with serving(lambda request: say(f"to {request.text}, draw {request.number}", pause_s=0.002)) as server:
        with start(path, server.url) as process:
            lines = [process.stdout.readline() for _ in range(after)]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.read().splitlines(keepends=True)
        assert process.returncode == -signal.SIGKILL
        returned = read(line for line in lines if line.endswith("\n"))
        with start(path, server.url) as process:
            final = read(process.stdout)
        assert process.returncode == 0
    assert len(final) == ASKS
    assert {number: final[number] for number in returned} == returned
    paid = [server.texts().count(f"question {number}") for number in range(ASKS)]
    assert all(paid[int(number)] == 1 for number in returned)
    assert ASKS <= sum(paid) <= ASKS + CONCURRENCY
    with open_journal(path) as journal:
        assert journal.counts() == {ANSWER: ASKS}


def test_ctrl_c_keeps_every_answer_that_came(tmp_path):
    path = tmp_path / "journal.sqlite"
    with serving(lambda request: say("x", pause_s=0.01)) as server, start(path, server.url) as process:
        said = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGINT)
        said += process.stdout.readlines()
    with open_journal(path) as journal:
        assert journal.counts()[ANSWER] >= len(said) >= 5
        assert len(server.requests) - journal.counts()[ANSWER] <= CONCURRENCY

"""The client against our own server (`iterpref serve`), with a sampler whose answers are written down."""

import contextlib
import threading

import pytest

from iterpref_jax.codeflow.endpoint import Sampling
from iterpref_jax.errors import UserError
from tests.codeflow.endpoint.asking import answers_of, ask_of

pytest.importorskip("uvicorn")

import uvicorn

from iterpref_jax.serve.server import bind, url
from tests.serve.scripted import ANSWER, CONTEXT, MODEL, ScriptedSampler, app_of


@contextlib.contextmanager
def served(**options):
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app_of(ScriptedSampler(), **options), log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield url(bound)
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


SAMPLING = Sampling(temperature=0.5, top_p=0.9, max_tokens=20, stop=("\n\n",), seed=7)


def test_our_server_answers_chats_and_prompts_and_counts_their_tokens(path):
    fields = {"sampling": SAMPLING}
    with served() as address:
        found, counts = answers_of(
            path, address, ask_of(**fields), ask_of(prompt="def add", **fields), model=MODEL, extra={"top_k": 3}
        )
    assert [(answer.text, answer.finish_reason, answer.estimated) for answer in found] == [(ANSWER, "stop", False)] * 2
    assert all(answer.prompt_tokens > 0 and answer.completion_tokens > 3 for answer in found)
    assert counts["retries"] == {}


def test_a_full_server_of_ours_is_waited_for(path):
    with served(max_waiting=0) as address:
        asks = [ask_of(f"n {i}", sampling=SAMPLING) for i in range(12)]
        found, _ = answers_of(path, address, *asks, model=MODEL, give_up_s=10.0)
    assert [answer.text for answer in found] == [ANSWER] * 12


def test_a_prompt_that_our_server_cannot_hold_fails_alone_and_an_unknown_model_ends_the_run(path):
    with served() as address:
        (long, short), _ = answers_of(path, address, ask_of("x " * CONTEXT, sampling=SAMPLING), ask_of(), model=MODEL)
        (refused,), _ = answers_of(path, address, ask_of(), model="other")
    assert (long.reason, short.text) == ("context_length", ANSWER)
    assert isinstance(refused, UserError)
    assert "The model 'other' does not exist; this server has" in str(refused)

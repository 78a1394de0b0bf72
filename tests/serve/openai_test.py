"""The official `openai` client against the server, over a socket; skips without the client."""

import contextlib
import json
import threading
import time
import urllib.request

import pytest
import uvicorn

from iterpref_jax.serve.server import bind, url
from tests.serve.scripted import ANSWER, MODEL, ScriptedSampler, app_of, tokenizer

openai = pytest.importorskip("openai")

PATIENCE_S = 20
HELLO = [{"role": "user", "content": "hello"}]


@contextlib.contextmanager
def served(sampler=None, **options):
    """Yields a client of a server that runs in a thread of its own."""
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app_of(sampler or ScriptedSampler(), **options), log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    address = url(bound)
    thread.start()
    wait_for(lambda: server.started)
    try:
        # Its own retries would hide the first answer.
        with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def client():
    with served() as client:
        yield client


def test_the_client_reads_a_completion(client):
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], n=2, seed=1, logprobs=0)
    assert [choice.text for choice in answer.choices] == [ANSWER] * 4
    assert answer.choices[0].finish_reason == "stop"
    assert len(answer.choices[0].logprobs.token_logprobs) == answer.usage.completion_tokens // 4


def test_the_client_reads_a_chat(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, logprobs=True, max_completion_tokens=20, extra_body={"top_k": 3}
    )
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.role == "assistant"
    spelled = b"".join(bytes(token.bytes) for token in answer.choices[0].logprobs.content)
    assert spelled.decode() == ANSWER + tokenizer().eos_token
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_client_reads_a_stream_of_a_completion(client):
    chunks = list(client.completions.create(model=MODEL, prompt="a", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_client_reads_a_stream_of_a_chat_with_usage(client):
    usage = {"include_usage": True}
    *chunks, last = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, stream_options=usage)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert last.usage.completion_tokens == len(chunks[1:-1]) + 2  # 'ü' is two tokens; the end of sequence has no text


def test_the_clients_own_gathering_of_a_stream_gives_the_answer(client):
    with client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == ANSWER


def test_the_client_lists_the_model(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "iterpref"


@pytest.mark.parametrize(
    ("kind", "fields", "code"),
    [
        ("BadRequestError", {"max_tokens": 1000}, "context_length_exceeded"),
        ("BadRequestError", {"temperature": 9}, "invalid_value"),
        ("BadRequestError", {"extra_body": {"beam_width": 3}}, "unknown_parameter"),
        ("NotFoundError", {"model": "other"}, "model_not_found"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_raises_the_clients_own_exception(client, kind, fields, code, stream):
    with pytest.raises(getattr(openai, kind)) as refused:
        client.completions.create(**{"model": MODEL, "prompt": "a", "stream": stream} | fields)
    assert refused.value.code == code


def test_a_failure_and_a_full_server_raise_the_clients_own_exceptions():
    sampler = ScriptedSampler(slots=1, gated=True, breaks=ZeroDivisionError("gone"))
    with served(sampler, max_waiting=0) as client:
        failed = []

        def ask():
            with pytest.raises(openai.InternalServerError) as error:
                client.completions.create(model=MODEL, prompt="a")
            failed.append(error.value.status_code)

        waiting = threading.Thread(target=ask)
        waiting.start()
        wait_for(lambda: sampler.submitted)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model=MODEL, prompt="a")
        sampler.gate.release()
        waiting.join()
    assert failed == [500]


def test_a_stream_that_breaks_raises_the_clients_own_exception():
    sampler = ScriptedSampler()
    step = sampler.step
    sampler.step = lambda: step() if sampler.steps < 3 else 1 // 0
    with served(sampler) as client, pytest.raises(openai.APIError, match="The server failed"):
        list(client.completions.create(model=MODEL, prompt="a", stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_gives_up_is_noticed_over_the_socket(stream):
    sampler = ScriptedSampler(gated=True)
    with served(sampler) as client:
        sampler.gate.release(2)
        if stream:
            answer = client.completions.create(model=MODEL, prompt="a", stream=True)
            next(iter(answer))
            answer.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.3).completions.create(model=MODEL, prompt="a")
        health = str(client.base_url).replace("/v1/", "/health")
        wait_for(lambda: json.load(urllib.request.urlopen(health))["completions"] == 0)
        sampler.gate.release(1)
        wait_for(lambda: sampler.cancelled == [1])

"""The client against a real loopback server: what is sent, what comes back, what is paid and kept."""

import asyncio
import threading
import time

import pytest

from iterpref_jax.codeflow.endpoint import ANSWER, Answer, Journal, MalformedAnswer, Sampling, open_journal
from iterpref_jax.errors import UserError
from tests.codeflow.endpoint.asking import answers_of, ask_of, with_client
from tests.support.llm_server import CHAT, PROMPT, event, refuse, say, serving, stream


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


def test_an_answer_has_the_text_the_reason_of_its_end_and_what_it_took(path):
    with serving(lambda request: say("return ü", usage=(100, 20), finish_reason="length")) as server:
        prices = {"usd_per_million_prompt": 1.0, "usd_per_million_completion": 10.0}
        (answer,), _ = answers_of(path, server.url, ask_of(), **prices)
    assert answer == Answer(
        text="return ü",
        finish_reason="length",
        prompt_tokens=100,
        completion_tokens=20,
        model="served-model",
        cost=pytest.approx(300e-6),
        estimated=False,
    )


def test_every_sampling_field_of_a_chat_is_sent(path):
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=5, stop=("x", "y"), seed=3)
    schema = {"type": "object"}
    ask = ask_of("hi", sampling=sampling, schema=schema)
    with serving(lambda request: say("{}")) as server:
        answers_of(path, server.url, ask, extra={"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}})
    (request,) = server.requests
    assert request.path == CHAT
    assert request.body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 5,
        "stop": ["x", "y"],
        "seed": ask.seed,
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_k": 20,
        "chat_template_kwargs": {"enable_thinking": False},
        "stream": True,
        "stream_options": {"include_usage": True},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
    }


def test_a_prompt_goes_to_the_completions_of_a_base_model(path):
    with serving(lambda request: say("return 1")) as server:
        (answer,), _ = answers_of(path, server.url, ask_of(prompt="def f():"))
    assert answer.text == "return 1"
    assert (server.requests[0].path, server.requests[0].body["prompt"]) == (PROMPT, "def f():")
    assert not {"messages", "stop", "seed", "response_format"} & server.requests[0].body.keys()


def test_an_answer_can_go_on_with_an_assistants_message(path):
    messages = ({"role": "user", "content": "add"}, {"role": "assistant", "content": "```python\n"})
    with serving(lambda request: say("x")) as server:
        answers_of(path, server.url, ask_of(messages=messages, continue_final=True))
    body = server.requests[0].body
    assert (body["add_generation_prompt"], body["continue_final_message"]) == (False, True)


def test_an_answer_of_the_journal_costs_no_request(path):
    with serving(lambda request: say(f"answer {request.number}")) as server:
        first, _ = answers_of(path, server.url, ask_of("a"), ask_of("b"))
        second, counts = answers_of(path, server.url, ask_of("b"), ask_of("a"))
    assert second == first[::-1]
    assert len(server.requests) == 2
    assert (counts["requests"], counts["from_journal"]) == (0, 2)


def test_equal_asks_at_the_same_time_are_paid_once_whatever_their_purpose(path):
    with serving(lambda request: say("x", pause_s=0.02)) as server:
        found, _ = answers_of(path, server.url, *[ask_of(purpose=f"p{i}") for i in range(8)])
    assert len(server.requests) == 1
    assert found == found[:1] * 8


def test_an_asker_that_is_cancelled_leaves_the_answer_to_the_others(path):
    async def use(client):
        impatient, patient = (asyncio.create_task(client.ask(ask_of())) for _ in range(2))
        await asyncio.sleep(0.05)
        impatient.cancel()
        return await patient

    with serving(lambda request: say("x", pause_s=0.05)) as server:
        assert with_client(path, server.url, use).text == "x"
    assert len(server.requests) == 1


def test_a_request_that_nobody_waits_for_is_ended(path):
    async def use(client):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.ask(ask_of()), 0.2)
        await asyncio.sleep(0.2)
        return server.running

    with serving(lambda request: say("x" * 50, pieces=50, pause_s=0.05)) as server:
        assert with_client(path, server.url, use) == 0


def test_answers_that_wait_for_the_disk_are_kept_when_everything_is_cancelled(path, monkeypatch):
    put = Journal.put

    def slow(journal, *value):
        time.sleep(0.15)
        put(journal, *value)

    async def use(client):
        tasks = [asyncio.create_task(client.ask(ask_of(f"n {i}"))) for i in range(6)]
        await asyncio.sleep(0.4)
        for task in tasks:
            task.cancel()

    monkeypatch.setattr(Journal, "put", slow)
    with serving(lambda request: say("x")) as server:
        with_client(path, server.url, use)
    with open_journal(path) as journal:
        assert journal.counts() == {ANSWER: 6}


def test_an_answer_that_the_disk_does_not_take_ends_all_with_its_reason_also_when_nobody_waits(path, monkeypatch):
    began = threading.Event()

    def full(journal, *value):
        began.set()
        time.sleep(0.1)
        raise UserError("the disk is full")

    async def use(client):
        task = asyncio.create_task(client.ask(ask_of()))
        while not began.is_set():
            await asyncio.sleep(0.01)
        task.cancel()

    monkeypatch.setattr(Journal, "put", full)
    with serving(lambda request: say("x")) as server, pytest.raises(UserError, match="the disk is full"):
        with_client(path, server.url, use)


@pytest.mark.parametrize(
    "changed",
    [
        {"sample": 1},
        {"attempt": 1},
        {"prompt_version": "2"},
        {"schema": {"type": "object"}},
        {"sampling": Sampling(temperature=0.7, top_p=0.9, max_tokens=32)},
        {"sampling": Sampling(temperature=0.8, top_p=0.9, max_tokens=32, seed=0)},
        {"messages": ({"role": "user", "content": "hello "},)},
        {"prompt": "hello"},
    ],
)
def test_whatever_changes_the_answer_changes_the_key(changed):
    assert ask_of(**changed).key("m") != ask_of().key("m")


def test_the_key_holds_the_model_and_its_extra_fields_but_not_the_purpose():
    keys = {ask_of().key(model, extra) for model in ("m", "n") for extra in (None, {"top_k": 1}, {"top_k": 2})}
    assert len(keys) == 6
    assert ask_of(purpose="other").key("m") == ask_of().key("m")


def test_a_key_is_the_same_in_every_version_of_this_program():
    # Another key would have every answer of every journal paid again.
    assert ask_of().key("m") == "905123b58e4cffa0f8cd52f764cc705c867b9d877b4287078786ccbd4712e821"


def test_samples_of_one_question_have_seeds_of_their_own():
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=1, seed=5)
    seeds = {ask_of(sampling=sampling, sample=i, attempt=j).seed for i in range(20) for j in range(3)}
    assert len(seeds) == 60
    assert ask_of().seed is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": ()}, "either messages or a prompt"),
        ({"messages": ({"role": "user", "content": "x"},), "prompt": "x"}, "either messages or a prompt"),
        ({"prompt": "x", "schema": {}}, "a schema needs messages"),
        ({"continue_final": True}, "continue_final needs an assistant's message"),
    ],
)
def test_an_ask_that_means_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ask_of(**fields)


def number(answer):
    if not answer.text.isdigit():
        raise ValueError(f"{answer.text!r} is no number")
    return int(answer.text)


def test_an_answer_that_cannot_be_read_is_asked_again_with_the_reason(path):
    def behave(request):
        return say("42" if len(request.body["messages"]) > 1 else "many")

    async def use(client):
        return await client.ask_json(ask_of("how many?"), number), client.accounts.as_json()

    with serving(behave) as server:
        value, counts = with_client(path, server.url, use)
    assert value == 42
    assert (counts["malformed"], counts["reasks"]) == ({"tests": 1}, 1)
    assert [message["role"] for message in server.requests[1].body["messages"]] == ["user", "assistant", "user"]
    assert "'many' is no number" in server.requests[1].text


def test_an_answer_that_stays_malformed_is_an_error_of_its_own_and_is_paid_once(path):
    async def use(client):
        with pytest.raises(MalformedAnswer, match=r"tests: 'many' is no number \(it was cut at max_tokens\)"):
            await client.ask_json(ask_of("how many?"), number)
        return client.accounts.as_json()

    with serving(lambda request: say("many", finish_reason="length")) as server:
        assert with_client(path, server.url, use, reasks=2)["malformed"] == {"tests": 3}
        assert with_client(path, server.url, use, reasks=2)["requests"] == 0
    assert len(server.requests) == 3


def test_a_base_model_is_asked_again_with_another_seed(path):
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=8, seed=1)

    async def use(client):
        return await client.ask_json(ask_of(prompt="n =", sampling=sampling), number)

    with serving(lambda request: say(["many", "7"][request.number])) as server:
        assert with_client(path, server.url, use) == 7
    assert len({request.body["seed"] for request in server.requests}) == 2


def test_after_a_prefill_the_model_sees_its_whole_answer_and_the_prefill_again(path):
    messages = ({"role": "user", "content": "n?"}, {"role": "assistant", "content": "n = "})

    async def use(client):
        return await client.ask_json(ask_of(messages=messages, continue_final=True), number)

    with serving(lambda request: say("7" if len(request.body["messages"]) > 2 else "many")) as server:
        assert with_client(path, server.url, use) == 7
    said = [message["content"] for message in server.requests[1].body["messages"]]
    assert (said[0], said[1], said[3]) == ("n?", "n = many", "n = ")


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": "many", "completion_tokens": 1}, {"prompt_tokens": -1}, []]
)
def test_tokens_that_the_server_does_not_count_are_estimated_and_flagged(path, usage):
    with serving(lambda request: say("x" * 35, usage=usage)) as server:
        (answer,), counts = answers_of(path, server.url, ask_of("y" * 70))
    assert (answer.prompt_tokens, answer.completion_tokens, answer.estimated) == (20, 10, True)
    assert counts["estimated"] == 1


def test_halves_of_a_character_that_came_apart_are_joined_and_lone_ones_replaced(path):
    def split(request):
        return stream(
            event(request, "\ud83d"), event(request, "\ude00 \ud83d"), event(request, finish_reason="stop"), "[DONE]"
        )

    with serving(split) as server:
        (answer,), _ = answers_of(path, server.url, ask_of())
    assert answer.text == "\U0001f600 �"


def test_the_key_comes_from_the_environment_and_stands_nowhere_else(path, monkeypatch):
    secret = "sk-very-secret"
    monkeypatch.setenv("ITERPREF_TEST_KEY", secret)
    with serving(lambda request: refuse(401, f"bad key {secret}") if request.text == "b" else say("x")) as server:
        (_, refused), _ = answers_of(path, server.url, ask_of("a"), ask_of("b"))
    assert server.requests[0].headers["authorization"] == f"Bearer {secret}"
    assert isinstance(refused, UserError)
    assert "bad key [key]" in str(refused)
    assert secret.encode() not in b"".join(file.read_bytes() for file in path.parent.iterdir())


def test_the_journal_holds_the_answer_under_the_clients_key_with_its_purpose(path):
    with serving(lambda request: say("x")) as server:
        (answer,), _ = answers_of(path, server.url, ask_of(purpose="repair"))
    with open_journal(path) as journal:
        kept = journal.get(ANSWER, ask_of().key("tiny"))
        assert journal.totals().keys() == {"repair"}
    assert (kept["text"], kept["purpose"], kept["model"]) == (answer.text, "repair", "served-model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, r"endpoint\.model is empty"),
        ({"urls": ()}, r"endpoint\.base_urls is empty"),
        ({"urls": ("localhost:8000",)}, r"endpoint\.base_urls: 'localhost:8000' is no address"),
        ({"urls": ("http://me:pw@host/v1",)}, r"endpoint\.base_urls: an address holds a user or a password"),
        ({"urls": ("http://a/v1", "http://a/v1")}, r"'http://a/v1' stands there twice"),
        ({"concurrency": 0}, r"endpoint\.concurrency: wanted a finite number above 0, got 0"),
        ({"stall_s": float("inf")}, r"endpoint\.stall_s: wanted a finite number above 0, got inf"),
        ({"max_calls": -1}, r"endpoint\.max_calls: wanted a finite number of at least 0"),
        ({"extra": {"top_p": 1}}, r"endpoint\.extra\.top_p: every request has this field already"),
        ({"budget_usd": 1.0}, r"endpoint\.budget_usd = 1\.0 has no effect without prices"),
    ],
)
def test_settings_that_cannot_work_are_named(path, changes, message):
    with pytest.raises(UserError, match=message):
        with_client(path, **{"urls": ("http://a/v1",), "use": None} | changes)

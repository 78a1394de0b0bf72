"""What the client does when servers fail: retries, pauses, limits that adapt, breakers, and clear ends."""

import asyncio
import datetime
import email.utils
import re
import time

import pytest

from iterpref_jax.codeflow.endpoint import WASTE, AskFailed, open_journal, policy
from iterpref_jax.errors import UserError
from tests.codeflow.endpoint.asking import answers_of, ask_of, with_client
from tests.support.llm_server import cut, event, hang, refuse, say, serving, stream

OK = say("fine")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


def asks(count):
    return [ask_of(f"question {i}") for i in range(count)]


def first_then_fine(bad):
    return lambda request: OK if request.number else bad


BAD = {
    "server_error": refuse(500),
    "bad_gateway": refuse(502),
    "unavailable": refuse(503),
    "conflict": refuse(409),
    "rate_limit": refuse(429),
    "timeout": refuse(408),
    "connection": cut(),
    "dropped": cut(2),
    "truncated": cut(1, tail=b'21\r\ndata: {"choices": [{"ind\r\n'),
    "empty": stream({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 0}}, "[DONE]"),
    "content_type": stream(b"<html>log in</html>", kind="text/html"),
    "stream_error": stream({"error": {"message": "out of memory"}}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_failure_that_may_pass_is_tried_again_and_counted_by_its_reason(path, name):
    with serving(first_then_fine(BAD[name])) as server:
        (answer,), counts = answers_of(path, server.url, ask_of())
    assert answer.text == "fine"
    assert counts["retries"] == ({name: 1} if name != "truncated" else {"dropped": 1})


MALFORMED = {
    "half an object": stream(b'data: {"choices": [{"index": 0, "de\n\n'),
    "no object": stream("[1, 2]"),
    "a choice that is none": stream({"choices": ["x"]}),
    "no UTF-8": stream(b"data: \xff\xfe\n\n"),
    "an end before the end": lambda request, writer: stream(event(request, "x"), "[DONE]")(request, writer),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_stream_that_is_not_whole_is_tried_again(path, name):
    with serving(first_then_fine(MALFORMED[name])) as server:
        (answer,), counts = answers_of(path, server.url, ask_of())
    assert answer.text == "fine"
    assert counts["retries"] == {"truncated": 1}


@pytest.mark.parametrize("events", [0, 2])
def test_a_server_that_falls_silent_is_noticed(path, events):
    with serving(first_then_fine(hang(events))) as server:
        (answer,), counts = answers_of(path, server.url, ask_of(), stall_s=0.2)
    assert answer.text == "fine"
    assert counts["retries"] == {"timeout": 1}


def test_a_stream_that_never_ends_is_cut_at_the_deadline_of_a_request(path):
    def behave(request):
        return OK if request.number else say("x" * 1000, pieces=1000, pause_s=0.02)

    with serving(behave) as server:
        (answer,), counts = answers_of(path, server.url, ask_of(), request_s=0.3)
    assert (answer.text, counts["retries"]) == ("fine", {"timeout": 1})


def test_an_ask_that_fails_by_itself_is_given_up_after_its_tries_while_others_are_answered(path):
    with serving(lambda request: refuse(500, "boom") if request.text == "question 1" else OK) as server:
        found, counts = answers_of(path, server.url, *asks(4), tries=3)
    assert [str(answer.text) if i != 1 else "" for i, answer in enumerate(found)] == ["fine", "", "fine", "fine"]
    assert isinstance(found[1], AskFailed)
    assert "500: boom" in str(found[1])
    assert server.texts().count("question 1") == 3
    assert counts["failed"] == {"server_error": 1}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (refuse(400, "too long", code="context_length_exceeded"), "context_length"),
        (refuse(400, "This model's maximum context length is 64 tokens"), "context_length"),
        (refuse(400, "filtered", code="content_filter"), "content_filter"),
    ],
)
def test_a_refusal_of_one_prompt_is_no_end_of_the_whole(path, reply, reason):
    with serving(lambda request: reply if request.text == "question 0" else OK) as server:
        (failed, answer), _ = answers_of(path, server.url, *asks(2))
    assert (failed.reason, answer.text) == (reason, "fine")
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (refuse(400, "no such field"), r"\(400\): http://.*: no such field; mend config\.endpoint"),
        (refuse(401, "bad key"), r"\(401\): .*bad key; set the environment variable ITERPREF_TEST_KEY"),
        (refuse(403, "not you"), r"\(403\): .*not you; set the environment variable"),
        (refuse(404, "unknown model"), r"\(404\): .*unknown model; is 'tiny' \(endpoint\.model\) served there"),
        (refuse(429, "pay first", code="insufficient_quota"), r"\(429\): .*pay first"),
    ],
)
def test_a_refusal_that_no_retry_mends_ends_at_once_with_the_servers_words(path, reply, message):
    with serving(lambda request: reply) as server:
        (refused,), _ = answers_of(path, server.url, ask_of())
    assert isinstance(refused, UserError)
    assert re.search(message, str(refused))
    assert len(server.requests) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_keeps_everybody_from_that_server(path, form):
    wait = 1.2 if form == "date" else 0.4

    def behave(request):
        if len(server.requests) > 1:
            return OK
        # A date has whole seconds, so it is up to a second earlier.
        value = email.utils.formatdate(time.time() + 2.0, usegmt=True) if form == "date" else "0.4"
        return refuse(429, retry_after=value)

    async def use(client):
        first = asyncio.create_task(client.ask(ask_of("first")))
        await asyncio.sleep(0.1)
        await asyncio.gather(first, *map(client.ask, asks(5)))

    with serving(behave) as server:
        with_client(path, server.url, use, give_up_s=5.0)
    first, *others = [request.at for request in server.requests]
    assert len(others) == 6
    assert min(others) - first > wait - 0.25


def test_a_server_that_wants_to_be_left_alone_too_long_ends_the_run(path):
    with serving(lambda request: refuse(429, "later", retry_after="3600")) as server:
        (ended,), _ = answers_of(path, server.url, ask_of())
    assert isinstance(ended, UserError)
    assert "asks to be left alone for 3600 s" in str(ended)


def test_the_client_asks_an_overloaded_server_less_and_all_is_answered(path):
    capacity = 3

    def behave(request):
        return refuse(429, "busy") if server.running > capacity else say("fine", pause_s=0.01)

    with serving(behave) as server:
        found, counts = answers_of(path, server.url, *asks(60), concurrency=16)
    assert {answer.text for answer in found} == {"fine"}
    # Without an adapting limit 16 retry against 3 places: some hundreds of refusals.
    assert counts["retries"]["rate_limit"] < 60


def test_no_more_than_concurrency_requests_run_at_a_time(path):
    with serving(lambda request: say("fine", pause_s=0.01)) as server:
        answers_of(path, server.url, *asks(30), concurrency=5)
    assert server.most_running == 5


def test_requests_per_minute_are_spaced(path):
    with serving(lambda request: OK) as server:
        answers_of(path, server.url, *asks(6), requests_per_minute=1200)
    times = [request.at for request in server.requests]
    assert times[-1] - times[0] > 5 * 0.05 - 0.02


def test_tokens_per_minute_count_what_answers_took_not_what_they_might_have(path):
    # 32 + 1 reserved a call, 10 taken: 10 tokens at 6000 a minute are 0.1 s.
    with serving(lambda request: OK) as server:
        began = time.monotonic()
        answers_of(path, server.url, *asks(6), tokens_per_minute=6000, concurrency=1)
        took = time.monotonic() - began
    assert 5 * 0.1 - 0.05 < took < 5 * 0.34


def test_of_two_servers_the_one_with_less_to_do_is_asked(path):
    with serving(lambda request: say("fine", pause_s=0.1)) as slow, serving(lambda request: OK) as fast:
        found, _ = answers_of(path, [slow.url, fast.url], *asks(40), concurrency=4)
    assert len(found) == len(slow.requests) + len(fast.requests) == 40
    assert len(fast.requests) > 3 * len(slow.requests) > 0


def test_when_one_of_two_servers_dies_the_other_answers_everything(path):
    living = serving(lambda request: say("fine", pause_s=0.01))
    with living as living, serving(lambda request: OK if len(dying.requests) < 4 else cut()) as dying:
        found, counts = answers_of(path, [dying.url, living.url], *asks(60), tries=2)
    assert {answer.text for answer in found} == {"fine"}
    assert counts["retries"].keys() == {"connection"}
    # The first wave of 8, then a probe now and then.
    assert len(dying.requests) < 25


@pytest.mark.parametrize(
    ("how", "reason"), [(cut(), "connection"), (refuse(503), "unavailable"), (refuse(429), "rate_limit")]
)
def test_an_ask_that_one_server_fails_goes_to_the_other(path, how, reason):
    with serving(lambda request: how) as failing, serving(lambda request: OK) as living:
        found, counts = answers_of(path, [failing.url, living.url], ask_of(), tries=2)
    assert [answer.text for answer in found] == ["fine"]
    assert len(failing.requests) == 1
    assert counts["retries"] == {reason: 1}


def test_a_server_that_comes_back_is_asked_again(path, capsys):
    with serving(lambda request: OK if len(server.requests) > 8 else refuse(503)) as server:
        found, _ = answers_of(path, server.url, *asks(3), break_after=2)
    assert {answer.text for answer in found} == {"fine"}
    said = capsys.readouterr().err
    assert f"endpoint: {server.url} fails" in said
    assert f"endpoint: {server.url} answers again" in said


def test_a_broken_server_gets_one_request_at_a_time(path):
    with serving(lambda request: refuse(503)) as server:
        answers_of(path, server.url, *asks(20), break_after=3, give_up_s=0.5, backoff_s=0.05, backoff_max_s=0.1)
        # The first wave of 16, then a probe every 0.05 s.
        assert len(server.requests) < 16 + 0.5 / 0.05 + 3


def test_when_no_server_answers_for_long_the_run_ends_and_names_them_and_the_journal_keeps_all(path):
    def behave(request):
        return OK if len(server.requests) <= 2 else refuse(503, "closed")

    with serving(behave) as server:
        dead = "http://127.0.0.1:9/v1"
        found, _ = answers_of(path, [server.url, dead], *asks(4), give_up_s=0.4, concurrency=2)
        ended = [one for one in found if isinstance(one, UserError)]
        assert len(ended) == 2
        assert f"not answered for 0.4 s: {server.url} (503: closed); {dead} (" in str(ended[0])
    with open_journal(path) as journal:
        assert journal.counts()["answer"] == 2


@pytest.mark.parametrize("reply", [cut(2), BAD["empty"]], ids=["breaks off", "empty"])
def test_a_server_that_begins_every_answer_and_ends_none_is_given_up(path, reply):
    with serving(lambda request: reply) as server:
        found, _ = answers_of(path, server.url, *asks(200), give_up_s=0.4, backoff_max_s=0.02)
    ended = [one for one in found if isinstance(one, UserError)]
    assert f"not answered for 0.4 s: {server.url}" in str(ended[0])


def test_an_answer_without_any_text_is_none_and_its_tokens_are_on_the_books(path):
    nothing = {"choices": [{"index": 0, "delta": {"content": None}, "finish_reason": "stop"}]}
    counted = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 40}}
    with serving(first_then_fine(stream(nothing, counted, "[DONE]"))) as server:
        (answer,), counts = answers_of(path, server.url, ask_of())
    assert (answer.text, counts["retries"]) == ("fine", {"empty": 1})
    with open_journal(path) as journal:
        ((_, waste),) = journal.items(WASTE)
    assert (waste["reason"], waste["completion_tokens"]) == ("empty", 40)


def test_an_answer_in_parts_is_the_text_among_them(path):
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}]
    chunk = {"choices": [{"index": 0, "delta": {"content": parts}, "finish_reason": "stop"}]}
    with serving(lambda request: stream(chunk, "[DONE]")) as server:
        (answer,), _ = answers_of(path, server.url, ask_of())
    assert answer.text == "fine"


def test_a_server_without_stream_options_is_asked_without_them(path):
    def behave(request):
        return refuse(400, "unknown field stream_options") if "stream_options" in request.body else say("x", usage=None)

    with serving(behave) as server:
        found, counts = answers_of(path, server.url, *asks(3), concurrency=1)
    assert [answer.estimated for answer in found] == [True] * 3
    assert len(server.requests) == 4


def test_what_came_of_an_answer_that_broke_off_is_on_the_books(path):
    with serving(first_then_fine(cut(4))) as server:
        answers_of(path, server.url, ask_of())
    with open_journal(path) as journal:
        ((_, waste),) = journal.items(WASTE)
    assert (waste["text"], waste["reason"], waste["estimated"], waste["purpose"]) == ("xxxx", "dropped", True, "tests")


def test_a_prompt_that_is_no_unicode_is_dropped_by_name(path):
    with serving(lambda request: OK) as server:
        (failed,), _ = answers_of(path, server.url, ask_of("\ud800"))
    assert (failed.reason, server.requests) == ("not_unicode", [])


def test_a_defect_of_ours_is_not_taken_for_a_failure_of_the_server():
    now = datetime.datetime.now(datetime.UTC)
    assert policy.failure_of(ZeroDivisionError(), begun=False, now=now) is None
    assert policy.failure_of(ValueError("ours"), begun=False, now=now) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("2", 2.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("nan", None),
        ("soon", None),
        ("Wed, 01 Jan 2025 00:00:30 GMT", 30.0),
        ("Wed, 01 Jan 2025 00:00:30 -0000", 30.0),
        ("Tue, 31 Dec 2024 00:00:30 GMT", 0.0),
    ],
)
def test_retry_after_is_a_number_or_a_date(value, seconds):
    now = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    assert policy.retry_after(value, now) == seconds


def test_pauses_are_random_below_a_bound_that_doubles_up_to_a_cap():
    assert [policy.backoff(n, 0.5, 30.0, 1.0) for n in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert policy.backoff(3, 0.5, 30.0, 0.25) == 1.0
    assert policy.backoff(10**6, 0.5, 30.0, 0.0) == 0.0

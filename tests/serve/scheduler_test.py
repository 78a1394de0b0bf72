"""Batching, limits, hang-ups, failures and the end: the scheduler's thread and the requests that wait on it."""

import asyncio
import contextlib
import json
import threading
import time

import pytest

from iterpref_jax.decode.request import Request
from iterpref_jax.errors import UserError
from iterpref_jax.serve.faults import ApiError
from iterpref_jax.serve.scheduler import Scheduler, ServeSettings
from tests.serve.scripted import CHAT, MODEL, ScriptedSampler, app_of, client_of, complete, events

PATIENCE_S = 20


@contextlib.contextmanager
def scheduler_of(sampler, max_waiting=8):
    scheduler = Scheduler(sampler, slots=sampler.slots, max_waiting=max_waiting)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close()


def request(seed=0, max_tokens=8):
    return Request(prompt=(5,), max_tokens=max_tokens, seed=seed)


async def texts(scheduler, requests):
    found = [""] * len(requests)
    async with scheduler.running(requests) as job:
        async for number, piece in job.pieces():
            found[number] += piece.text
    return found


async def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


def test_requests_of_several_clients_share_the_steps_of_the_sampler():
    sampler = ScriptedSampler(answer=lambda request: str(request.seed), slots=4, gated=True)

    async def run(scheduler):
        clients = [asyncio.ensure_future(texts(scheduler, [request(seed)])) for seed in (1, 2, 3)]
        await until(lambda: len(sampler.submitted) == 3)
        sampler.gate.release(100)
        return await asyncio.gather(*clients)

    with scheduler_of(sampler) as scheduler:
        # All three arrive while the gate is shut, and the first step may have begun with one of them alone.
        assert asyncio.run(run(scheduler)) == [["1"], ["2"], ["3"]]
    assert sampler.steps <= 3


def test_every_choice_gets_its_own_pieces():
    sampler = ScriptedSampler(answer=lambda request: f"seed {request.seed}", slots=2)
    with scheduler_of(sampler) as scheduler:
        found = asyncio.run(texts(scheduler, [request(seed) for seed in range(5)]))
    assert found == [f"seed {seed}" for seed in range(5)]


def test_leaving_a_job_early_cancels_what_runs_and_frees_its_place():
    sampler = ScriptedSampler(gated=True)

    async def run(scheduler):
        async with scheduler.running([request(), request()]):
            assert scheduler.open == 2
        assert scheduler.open == 0
        sampler.gate.release(1)
        await until(lambda: not sampler.busy)

    with scheduler_of(sampler) as scheduler:
        asyncio.run(run(scheduler))
    assert sorted(sampler.cancelled) == [1, 2]


def test_a_job_that_has_ended_is_not_cancelled():
    sampler = ScriptedSampler()
    with scheduler_of(sampler) as scheduler:
        asyncio.run(texts(scheduler, [request()]))
    assert sampler.cancelled == []


def test_a_refusal_of_one_request_is_raised_and_the_scheduler_goes_on():
    sampler = ScriptedSampler(refuse=lambda request: request.seed == 1)

    async def run(scheduler):
        with pytest.raises(UserError, match="does not like"):
            await texts(scheduler, [request(0), request(1)])
        return await texts(scheduler, [request(0)])

    with scheduler_of(sampler) as scheduler:
        assert len(asyncio.run(run(scheduler))[0]) > 0
        assert not scheduler.failed
    assert sampler.cancelled == [1]


def test_more_than_may_wait_get_a_429_until_there_is_room_again():
    sampler = ScriptedSampler(slots=1, gated=True)

    async def run(scheduler):
        first = asyncio.ensure_future(texts(scheduler, [request(), request()]))
        await until(lambda: len(sampler.submitted) == 2)
        with pytest.raises(ApiError, match="2 completions run or wait already") as refused:
            await texts(scheduler, [request()])
        assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
        sampler.gate.release(100)
        await first
        assert await texts(scheduler, [request()])

    with scheduler_of(sampler, max_waiting=1) as scheduler:
        asyncio.run(run(scheduler))


@pytest.mark.parametrize("broken", ["step", "submit"])
def test_a_sampler_that_dies_fails_every_request_that_waits_and_all_later_ones(broken, caplog):
    sampler = ScriptedSampler(gated=True, breaks=ZeroDivisionError("the device is gone"))
    if broken == "submit":
        sampler = ScriptedSampler(answer=lambda request: 1 // 0)

    async def run(scheduler):
        waiting = [asyncio.ensure_future(texts(scheduler, [request()])) for _ in range(3)]
        if broken == "step":
            await until(lambda: len(sampler.submitted) == 3)
            sampler.gate.release()
        for one in waiting:
            with pytest.raises(ApiError) as failed:
                await one
            assert failed.value.status == 500
        with pytest.raises(ApiError, match="The server failed"):
            await texts(scheduler, [request()])
        assert scheduler.failed
        assert scheduler.open == 0

    with scheduler_of(sampler) as scheduler:
        asyncio.run(asyncio.wait_for(run(scheduler), PATIENCE_S))
    assert "ZeroDivisionError" in caplog.text


def test_health_is_503_once_the_sampler_has_died_and_requests_get_500():
    with client_of(ScriptedSampler(breaks=ZeroDivisionError("gone"))) as client:
        assert complete(client).status_code == 500
        health = client.get("/health")
        assert complete(client).json()["error"]["type"] == "server_error"
    assert (health.status_code, health.json()["error"]["type"]) == (503, "server_error")


@pytest.mark.parametrize("path", ["/v1/completions", CHAT])
def test_a_stream_that_breaks_ends_with_an_error_event_and_without_done(path):
    sampler = ScriptedSampler()
    step = sampler.step
    sampler.step = lambda: step() if sampler.steps < 3 else 1 // 0
    with client_of(sampler) as client:
        chunks, last = events(complete(client, path, stream=True))
    assert json.loads(last)["error"]["type"] == "server_error"
    assert all("error" not in chunk for chunk in chunks)


def test_closing_ends_the_thread_while_requests_run():
    sampler = ScriptedSampler(answer=lambda request: "x" * 7)

    async def run(scheduler):
        async with scheduler.running([request()]):
            await asyncio.to_thread(scheduler.close)

    with scheduler_of(sampler) as scheduler:
        asyncio.run(asyncio.wait_for(run(scheduler), PATIENCE_S))
    assert all(thread.name != "sampler" for thread in threading.enumerate())


@pytest.mark.parametrize("fields", [{"max_waiting": -1, "grace_s": 1}, {"max_waiting": 1, "grace_s": -1}])
def test_settings_below_0_are_refused(fields):
    with pytest.raises(UserError, match="must be at least 0"):
        ServeSettings(**fields)


class Wire:
    """The server's side of one HTTP request: what the app sends is kept, the client may hang up at any time."""

    def __init__(self, app, path="/v1/completions", **fields):
        body = json.dumps({"model": MODEL, "prompt": "def", "max_tokens": 12} | fields).encode()
        self.arriving = asyncio.Queue()
        self.arriving.put_nowait({"type": "http.request", "body": body})
        self.sent = []
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        self.task = asyncio.ensure_future(app(scope, self.arriving.get, self.send))

    async def send(self, message):
        self.sent.append(message)

    def hang_up(self):
        self.arriving.put_nowait({"type": "http.disconnect"})

    def body(self):
        return b"".join(message.get("body", b"") for message in self.sent).decode()


def run_app(app, run):
    """Runs `run(app)` between the start and the end of the app's lifespan."""

    async def whole():
        arriving, sent = asyncio.Queue(), asyncio.Queue()
        lifespan = asyncio.ensure_future(app({"type": "lifespan"}, arriving.get, sent.put))
        await arriving.put({"type": "lifespan.startup"})
        assert (await sent.get())["type"] == "lifespan.startup.complete"
        try:
            await asyncio.wait_for(run(app), PATIENCE_S)
        finally:
            await arriving.put({"type": "lifespan.shutdown"})
            await lifespan

    asyncio.run(whole())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_cancels_all_its_completions_and_nobody_elses(stream, capsys):
    sampler = ScriptedSampler(gated=True, slots=4)

    async def run(app):
        gone, stays = Wire(app, prompt=[5], n=2, stream=stream), Wire(app, prompt=[6])
        await until(lambda: len(sampler.submitted) == 3)
        sampler.gate.release(2)
        await until(lambda: sampler.steps == 2)
        gone.hang_up()
        await gone.task
        sampler.gate.release(100)
        await stays.task
        assert stays.sent[0]["status"] == 200
        assert json.loads(stays.body())["choices"][0]["finish_reason"] == "stop"
        await until(lambda: len(sampler.cancelled) == 2)

    run_app(app_of(sampler), run)
    assert {sampler.submitted[number - 1].prompt for number in sampler.cancelled} == {(5,)}
    lines = capsys.readouterr().err.splitlines()
    assert ["client left" in line for line in lines] == [True, False]


def test_a_client_that_hangs_up_while_its_body_is_on_the_way_leaves_no_traceback(caplog):
    async def run(app):
        wire = Wire(app)
        wire.arriving.get_nowait()
        wire.hang_up()
        await wire.task

    run_app(app_of(ScriptedSampler()), run)
    assert caplog.text == ""


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_the_end_of_the_server_cuts_off_is_told_so(stream):
    sampler = ScriptedSampler(gated=True)

    async def run(app):
        wire = Wire(app, stream=stream)
        await until(lambda: len(sampler.submitted) == 1)
        sampler.gate.release(2)
        await until(lambda: sampler.steps == 2)
        wire.task.cancel()
        await wire.task
        sampler.gate.release(100)
        assert wire.sent[0]["status"] == (200 if stream else 503)
        assert "The server is shutting down" in wire.body()

    run_app(app_of(sampler), run)
    assert sampler.cancelled == [1]

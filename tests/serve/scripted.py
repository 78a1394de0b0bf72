"""A sampler whose answers are written down beforehand, and the app around it."""

import codecs
import dataclasses
import functools
import json
import threading

from starlette.testclient import TestClient

from iterpref_jax.data.token_bytes import token_bytes
from iterpref_jax.decode.request import Piece
from iterpref_jax.errors import UserError
from iterpref_jax.serve.app import make_app
from iterpref_jax.serve.prompts import Prompts
from iterpref_jax.serve.scheduler import Scheduler
from tests.data import tiny

CONTEXT = 64
MODEL = "org/tiny"
ANSWER = "return ü + 1"


@functools.cache
def tokenizer(chat_template=tiny.CHAT_TEMPLATE):
    return tiny.byte_level(bos=True, chat_template=chat_template)


@functools.cache
def table():
    backend = tokenizer().backend_tokenizer
    return token_bytes(backend, json.loads(backend.to_str()))


def ids(text):
    return tokenizer().encode(text, add_special_tokens=False)


@dataclasses.dataclass
class Running:
    """One request on its way: tokens to come, and how many are out."""

    request: object
    tokens: list
    ends: str
    done: int = 0
    decoder: object = dataclasses.field(default_factory=codecs.getincrementaldecoder("utf-8"))


class ScriptedSampler:
    """One token a step for each of the first `slots` requests; `answer(request)` is what a request will say.

    With `gated`, every step waits for `gate.release()`; a step that ought to fail raises `breaks`.
    """

    def __init__(self, answer=lambda request: ANSWER, slots=2, gated=False, refuse=None, breaks=None):
        self.answer, self.slots, self.refuse, self.breaks = answer, slots, refuse, breaks
        self.gate = threading.Semaphore(0) if gated else None
        self.submitted, self.cancelled, self.steps = [], [], 0
        self.running = {}
        self.thread = None

    @property
    def busy(self):
        return bool(self.running)

    def submit(self, request):
        self.one_thread()
        if self.refuse and self.refuse(request):
            raise UserError("the sampler does not like this prompt")
        tokens = [*ids(self.answer(request)), tokenizer().eos_token_id]
        ends = "stop" if len(tokens) <= request.max_tokens else "length"
        self.submitted.append(request)
        self.running[len(self.submitted)] = Running(request, tokens[: request.max_tokens], ends)
        return len(self.submitted)

    def cancel(self, request_id):
        self.one_thread()
        del self.running[request_id]
        self.cancelled.append(request_id)

    def step(self):
        self.one_thread()
        if self.gate:
            assert self.gate.acquire(timeout=30), "the test forgot to open the gate"
        if self.breaks:
            raise self.breaks
        self.steps += 1
        pieces = [self.advance(request_id, self.running[request_id]) for request_id in [*self.running][: self.slots]]
        self.running = {key: one for key, one in self.running.items() if one.done < len(one.tokens)}
        return pieces

    def advance(self, request_id, one):
        token = one.tokens[one.done]
        one.done += 1
        text = "" if token == tokenizer().eos_token_id else one.decoder.decode(table()[token])
        reason = one.ends if one.done == len(one.tokens) else None
        return Piece(
            request_id=request_id, text=text, tokens=(token,), logprobs=(-0.5 * one.done,), finish_reason=reason
        )

    def one_thread(self):
        self.thread = self.thread or threading.current_thread()
        assert threading.current_thread() is self.thread is not threading.main_thread()


def app_of(sampler, max_waiting=8, tokenizer=None):
    scheduler = Scheduler(sampler, slots=sampler.slots, max_waiting=max_waiting)
    prompts = Prompts(tokenizer or globals()["tokenizer"](), context=CONTEXT, vocab_size=512)
    return make_app(scheduler, prompts, table(), MODEL)


def client_of(sampler=None, **options):
    """A client of an app in this process; use it in a `with` block, which starts and ends the scheduler."""
    return TestClient(app_of(sampler or ScriptedSampler(), **options))


def complete(client, path="/v1/completions", **fields):
    """Posts a request; `prompt` or `messages` and `model` have defaults."""
    subject = {"messages": [{"role": "user", "content": "add"}]} if "chat" in path else {"prompt": "def add"}
    return client.post(path, json={"model": MODEL} | subject | fields)


CHAT = "/v1/chat/completions"


def events(response):
    """The events of a stream: JSON objects, and the text of the last one."""
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    *chunks, last = (line.removeprefix("data: ") for line in lines)
    return [json.loads(chunk) for chunk in chunks], last

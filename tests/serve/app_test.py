"""The HTTP interface over a scripted sampler: what OpenAI's clients send and what they get."""

import dataclasses

import pytest

from iterpref_jax.codeflow.endpoint import wire
from iterpref_jax.evaluate import asking, generators
from iterpref_jax.evaluate.prompts import Shown
from tests.codeflow.endpoint.asking import SETTINGS
from tests.serve.scripted import ANSWER, CHAT, CONTEXT, MODEL, ScriptedSampler, client_of, complete, events, ids, table
from tests.serve.scripted import tokenizer as make_tokenizer

BOS = make_tokenizer().convert_tokens_to_ids("<s>")


def test_a_completion_has_the_fields_of_openais():
    with client_of() as client:
        answer = complete(client).json()
    assert answer.pop("id").startswith("cmpl-")
    assert isinstance(answer.pop("created"), int)
    completion_tokens = len(ids(ANSWER)) + 1
    prompt_tokens = 1 + len(ids("def add"))
    assert answer == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [{"index": 0, "text": ANSWER, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def test_a_chat_completion_has_the_fields_of_openais():
    with client_of() as client:
        answer = complete(client, CHAT).json()
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer.pop("usage")["completion_tokens"] == len(ids(ANSWER)) + 1
    message = {"role": "assistant", "content": ANSWER, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    assert answer == {"object": "chat.completion", "model": MODEL, "choices": [choice]}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a b", [[BOS, *ids("a b")]]),
        (["a", "b"], [[BOS, *ids("a")], [BOS, *ids("b")]]),
        ([7, 8], [[7, 8]]),
        ([[7, 8], [9]], [[7, 8], [9]]),
    ],
)
def test_a_prompt_is_text_or_ids_one_or_several_and_text_gets_the_tokenizers_first_token(prompt, expected):
    sampler = ScriptedSampler()
    with client_of(sampler) as client:
        answer = complete(client, prompt=prompt).json()
    assert [list(request.prompt) for request in sampler.submitted] == expected
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))


@pytest.mark.parametrize("content", ["add", [{"type": "text", "text": "a"}, {"type": "text", "text": "dd"}]])
def test_messages_are_written_by_the_tokenizers_chat_template_without_further_special_tokens(content):
    sampler = ScriptedSampler()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    with client_of(sampler) as client:
        assert complete(client, CHAT, messages=messages).status_code == 200
    text = "<|turn|>system\nBe brief.<|end|>\n<|turn|>user\nadd<|end|>\n<|turn|>assistant\n"
    assert list(sampler.submitted[0].prompt) == ids(text)


def test_the_assistants_last_message_is_gone_on_with_if_the_request_says_so():
    sampler = ScriptedSampler()
    messages = [{"role": "user", "content": "add"}, {"role": "assistant", "content": "Here:\n```python\n"}]
    fields = {"add_generation_prompt": False, "continue_final_message": True}
    with client_of(sampler) as client:
        answer = complete(client, CHAT, messages=messages, **fields).json()
        complete(client, CHAT, messages=messages, add_generation_prompt=False)
    text = "<|turn|>user\nadd<|end|>\n<|turn|>assistant\nHere:\n```python\n"
    assert [list(each.prompt) for each in sampler.submitted] == [ids(text), ids(f"{text}<|end|>\n")]
    assert answer["choices"][0]["message"]["content"] == ANSWER


def test_what_eval_asks_an_endpoint_for_an_answer_that_is_begun_is_taken():
    shown = Shown(text="", messages=(("user", "add"),), prefill="```python\n", stops=())
    sampling = generators.Sampling(temperature=0.0, top_p=1.0, max_new_tokens=4, seed=0)
    wanted = generators.Wanted(shown=shown, task_id="t", task=0, sample=0)
    body = wire.body_of(asking.asked(wanted, sampling), dataclasses.replace(SETTINGS, model=MODEL), usage=True)[1]
    sampler = ScriptedSampler()
    with client_of(sampler) as client:
        assert client.post(CHAT, json=body).status_code == 200
    assert list(sampler.submitted[0].prompt) == ids("<|turn|>user\nadd<|end|>\n<|turn|>assistant\n```python\n")


def test_a_tokenizer_that_cuts_or_pads_does_neither_to_a_prompt():
    cutting = make_tokenizer()
    cutting.backend_tokenizer.enable_truncation(2)
    cutting.backend_tokenizer.enable_padding(length=40)
    sampler = ScriptedSampler()
    try:
        with client_of(sampler, tokenizer=cutting) as client:
            complete(client, prompt="def add(a, b)")
    finally:
        cutting.backend_tokenizer.no_truncation()
        cutting.backend_tokenizer.no_padding()
    assert list(sampler.submitted[0].prompt) == [BOS, *ids("def add(a, b)")]


def test_every_choice_of_every_prompt_has_its_place_and_a_prompt_counts_once():
    sampler = ScriptedSampler(answer=lambda request: f"{len(request.prompt)} {request.seed}")
    with client_of(sampler) as client:
        answer = complete(client, prompt=[[5], [5, 6]], n=3, seed=1).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert [text.split()[0] for text in texts] == ["1", "1", "1", "2", "2", "2"]
    assert len({text.split()[1] for text in texts}) == 6
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert answer["usage"]["prompt_tokens"] == 3


def test_a_seed_gives_the_same_answers_again_and_no_seed_gives_others():
    sampler = ScriptedSampler(answer=lambda request: str(request.seed))
    with client_of(sampler) as client:

        def texts(**fields):
            return [choice["text"] for choice in complete(client, n=2, **fields).json()["choices"]]

        assert texts(seed=3) == texts(seed=3) != texts(seed=4)
        assert texts() != texts()
        assert texts(seed=-3) != texts(seed=3)


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("/v1/completions", {}, {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "stop": (), "max_tokens": 16}),
        (CHAT, {}, {"max_tokens": CONTEXT - len(ids("<|turn|>user\nadd<|end|>\n<|turn|>assistant\n"))}),
        (CHAT, {"max_tokens": 3}, {"max_tokens": 3}),
        (CHAT, {"max_completion_tokens": 3}, {"max_tokens": 3}),
        ("/v1/completions", {"temperature": 0}, {"temperature": 0.0}),
        ("/v1/completions", {"top_p": 0.5, "top_k": 9}, {"top_p": 0.5, "top_k": 9}),
        ("/v1/completions", {"stop": "x"}, {"stop": ("x",)}),
        ("/v1/completions", {"stop": ["x", "y"]}, {"stop": ("x", "y")}),
        ("/v1/completions", {"stop": None, "temperature": None}, {"stop": (), "temperature": 1.0}),
    ],
)
def test_options_reach_the_sampler_and_have_openais_defaults(path, fields, expected):
    sampler = ScriptedSampler()
    with client_of(sampler) as client:
        assert complete(client, path, **fields).status_code == 200
    assert {name: getattr(sampler.submitted[0], name) for name in expected} == expected


def test_an_answer_that_is_cut_says_length():
    with client_of() as client:
        choice = complete(client, max_tokens=1).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert ANSWER.startswith(choice["text"])


def test_the_logprobs_of_a_completion_spell_its_tokens_and_where_they_start():
    with client_of() as client:
        found = complete(client, logprobs=0).json()["choices"][0]["logprobs"]
    spelled = [table()[token] for token in [*ids(ANSWER), make_tokenizer().eos_token_id]]
    starts = [len(b"".join(spelled[:i]).decode(errors="ignore")) for i in range(len(spelled))]
    assert found == {
        "tokens": [token.decode(errors="replace") for token in spelled],
        "token_logprobs": [-0.5 * (i + 1) for i in range(len(spelled))],
        "top_logprobs": None,
        "text_offset": starts,
    }


def test_the_logprobs_of_a_chat_completion_hold_the_bytes_of_every_token():
    with client_of() as client:
        found = complete(client, CHAT, logprobs=True, top_logprobs=0).json()["choices"][0]["logprobs"]
    spelled = b"".join(bytes(token["bytes"]) for token in found["content"])
    assert spelled.decode() == ANSWER + make_tokenizer().eos_token
    assert [token["logprob"] for token in found["content"]] == [-0.5 * (i + 1) for i in range(len(found["content"]))]
    assert found["content"][0].keys() == {"token", "logprob", "bytes", "top_logprobs"}


def test_a_stream_of_a_completion_gives_the_text_in_pieces_and_ends_with_done():
    with client_of() as client:
        response = complete(client, stream=True)
    chunks, last = events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert last == "[DONE]"
    assert len(chunks) > 3
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == ANSWER
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_of_a_chat_begins_with_the_role_and_ends_with_an_empty_delta_that_says_why():
    with client_of() as client:
        chunks, last = events(complete(client, CHAT, stream=True))
    choices = [chunk["choices"][0] for chunk in chunks]
    assert last == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"]["content"] for choice in choices[:-1]) == ANSWER
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "stop")
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)


@pytest.mark.parametrize("path", ["/v1/completions", CHAT])
def test_a_stream_with_usage_counts_in_one_last_chunk_and_null_before(path):
    with client_of() as client:
        whole = complete(client, path, n=2).json()["usage"]
        chunks, _ = events(complete(client, path, n=2, stream=True, stream_options={"include_usage": True}))
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], whole)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


@pytest.mark.parametrize("path", ["/v1/completions", CHAT])
def test_a_stream_says_the_same_as_the_whole_answer_choice_by_choice(path):
    sampler = ScriptedSampler(answer=lambda request: f"ä {request.seed}", slots=2)
    with client_of(sampler) as client:
        wanted = {"n": 3, "seed": 5, "logprobs": True if path == CHAT else 0}
        whole = complete(client, path, **wanted).json()["choices"]
        chunks, _ = events(complete(client, path, stream=True, **wanted))
    for choice in whole:
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        logprobs = [part["logprobs"] for part in own if part["logprobs"]]
        if path == CHAT:
            assert "".join(part["delta"].get("content", "") for part in own) == choice["message"]["content"]
            assert [token for part in logprobs for token in part["content"]] == choice["logprobs"]["content"]
        else:
            assert "".join(part["text"] for part in own) == choice["text"]
            for name in ("tokens", "token_logprobs", "text_offset"):
                assert [value for part in logprobs for value in part[name]] == choice["logprobs"][name]


def test_the_served_model_is_listed_and_found_by_its_name_with_a_slash():
    with client_of() as client:
        listed = client.get("/v1/models").json()
        assert client.get(f"/v1/models/{MODEL}").json() == listed["data"][0]
        assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    assert listed["object"] == "list"
    assert [(model["id"], model["object"]) for model in listed["data"]] == [(MODEL, "model")]


def test_health_is_well_while_the_sampler_is():
    with client_of() as client:
        assert (client.get("/health").status_code, client.get("/health").json()["status"]) == (200, "ok")


def test_every_request_is_one_line_of_the_log_with_its_tokens(capsys):
    with client_of() as client:
        complete(client, prompt=[5, 6, 7], max_tokens=2)
        client.get("/v1/nothing")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert " POST /v1/completions 200, 3 + 2 tokens, " in lines[0]
    assert " GET /v1/nothing 404, " in lines[1]

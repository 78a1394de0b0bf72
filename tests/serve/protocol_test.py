"""What is refused, and how: OpenAI's error form, with the field that is wrong."""

import pytest

from tests.serve.scripted import CHAT, CONTEXT, MODEL, ScriptedSampler, client_of, complete, tokenizer

COMPLETIONS = "/v1/completions"
HELLO = {"role": "user", "content": "hello"}


@pytest.fixture(scope="module")
def client():
    with client_of() as client:
        yield client


def error_of(response, status=400):
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The body is not JSON"),
        (b"{", "The body is not JSON"),
        (b'{"model": "\xff"}', "The body is not JSON"),
        (b"[" * 100_000, "The body is not JSON"),
        (b"[]", "must be a JSON object, not a list"),
        (b'"x"', "must be a JSON object, not a string"),
    ],
    ids=["empty", "cut", "not UTF-8", "too deep", "list", "string"],
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_body_that_is_no_json_object_is_refused(client, path, body, message):
    error = error_of(client.post(path, content=body))
    assert message in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")


@pytest.mark.parametrize(
    ("path", "field", "value", "message"),
    [
        (COMPLETIONS, "n", "2", "'n' must be a whole number, not a string"),
        (COMPLETIONS, "n", True, "'n' must be a whole number, not a boolean"),
        (COMPLETIONS, "n", 1.0, "'n' must be a whole number, not a number"),
        (COMPLETIONS, "n", 0, "'n' must lie between 1 and 128, got 0"),
        (COMPLETIONS, "n", 129, "'n' must lie between 1 and 128"),
        (COMPLETIONS, "max_tokens", 0, "'max_tokens' must lie between 1 and"),
        (COMPLETIONS, "temperature", 2.5, "'temperature' must lie between 0 and 2, got 2.5"),
        (COMPLETIONS, "temperature", "hot", "'temperature' must be a number, not a string"),
        (COMPLETIONS, "top_p", 1.1, "'top_p' must lie between 0 and 1"),
        (COMPLETIONS, "top_k", -1, "'top_k' must lie between 0 and"),
        (COMPLETIONS, "seed", 2**63, "'seed' must lie between"),
        (COMPLETIONS, "stop", 3, "'stop' must be a string or a list of strings"),
        (COMPLETIONS, "stop", ["a"] * 5, "'stop' takes up to 4 strings"),
        (COMPLETIONS, "stop", [""], "none of them empty"),
        (COMPLETIONS, "stop", ["a", 1], "'stop' must be a string, not a whole number"),
        (COMPLETIONS, "stream", 1, "'stream' must be a boolean, not a whole number"),
        (COMPLETIONS, "logprobs", 1, "'logprobs' = 1 is not supported"),
        (COMPLETIONS, "logprobs", False, "'logprobs' = false is not supported"),
        (COMPLETIONS, "echo", True, "'echo' = true is not supported"),
        (COMPLETIONS, "best_of", 2, "'best_of' = 2 is not supported"),
        (COMPLETIONS, "suffix", "end", "'suffix' = \"end\" is not supported"),
        (COMPLETIONS, "frequency_penalty", 0.5, "'frequency_penalty' = 0.5 is not supported"),
        (COMPLETIONS, "logit_bias", {"5": 1}, "'logit_bias' = {\"5\": 1} is not supported"),
        (COMPLETIONS, "temprature", 1, "Unknown field 'temprature'; did you mean 'temperature'?"),
        (COMPLETIONS, "messages", [HELLO], "Unknown field 'messages'"),
        (COMPLETIONS, "prompt", 3, "'prompt' must be a string, a list of strings, token ids"),
        (COMPLETIONS, "prompt", [], "'prompt' is empty"),
        (COMPLETIONS, "prompt", [[]], "has no token"),
        (COMPLETIONS, "prompt", ["a", 3], "'prompt' must hold strings or token ids, not both"),
        (COMPLETIONS, "prompt", [3, "a"], "a list of token ids alone, not a string"),
        (COMPLETIONS, "prompt", [3, True], "a list of token ids alone, not a boolean"),
        (COMPLETIONS, "prompt", [512], "token id 512 does not exist: the model's ids are 0 to 511"),
        (COMPLETIONS, "prompt", [-1], "token id -1 does not exist"),
        (CHAT, "prompt", "x", "Unknown field 'prompt'"),
        (CHAT, "logprobs", 1, "'logprobs' must be a boolean"),
        (CHAT, "top_logprobs", 2, "'top_logprobs' = 2 is not supported"),
        (CHAT, "tools", [{"type": "function"}], "'tools' = "),
        (CHAT, "response_format", {"type": "json_object"}, "'response_format' = "),
        (CHAT, "messages", [], "'messages' is empty"),
        (CHAT, "messages", "hello", "'messages' must be a list of messages"),
    ],
)
def test_a_field_that_is_wrong_unknown_or_not_supported_is_named(client, path, field, value, message):
    error = error_of(complete(client, path, **{field: value}))
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(field)


@pytest.mark.parametrize(
    ("message", "param", "said"),
    [
        ("hello", "messages[1]", "must be an object with 'role' and 'content', not a string"),
        ({"role": "user"}, "messages[1].content", "missing"),
        ({"content": "x"}, "messages[1].role", "missing"),
        ({"role": "robot", "content": "x"}, "messages[1].role", "must be one of system, user, assistant"),
        ({"role": "tool", "content": "x"}, "messages[1].role", "must be one of system, user, assistant"),
        ({"role": "user", "content": 3}, "messages[1].content", "a string or a list of text parts"),
        ({"role": "user", "content": "x", "name": "ann"}, "messages[1].name", "not supported"),
        ({"role": "user", "contents": "x"}, "messages[1].contents", "did you mean 'content'?"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[1].content[0].type",
            "not supported",
        ),
    ],
)
def test_what_is_wrong_in_a_message_is_named_by_its_place(client, message, param, said):
    error = error_of(complete(client, CHAT, messages=[HELLO, message]))
    assert error["param"] == param
    assert said in error["message"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (COMPLETIONS, {"echo": False, "best_of": 1, "suffix": None, "logit_bias": {}, "user": "ann"}),
        (COMPLETIONS, {"frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": None}),
        (CHAT, {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "metadata": {"a": "b"}}),
        (CHAT, {"logprobs": False, "top_logprobs": None, "service_tier": "auto", "store": False, "user": "ann"}),
    ],
)
def test_fields_that_change_nothing_at_their_value_are_accepted(client, path, fields):
    assert complete(client, path, **fields).status_code == 200


def test_an_answer_can_be_sent_back_as_a_message(client):
    said = complete(client, CHAT).json()["choices"][0]["message"]
    answer = complete(client, CHAT, messages=[HELLO, said | {"tool_calls": None, "annotations": []}, HELLO])
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (COMPLETIONS, {"stream_options": {"include_usage": True}}, "no effect without 'stream'"),
        (CHAT, {"top_logprobs": 0}, "no effect without 'logprobs'"),
        (CHAT, {"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens or max_completion_tokens, not both"),
        (CHAT, {"continue_final_message": True}, "needs 'add_generation_prompt': false"),
        (CHAT, {"continue_final_message": True, "add_generation_prompt": False}, "the last one is of the role 'user'"),
        (COMPLETIONS, {"continue_final_message": True}, "Unknown field 'continue_final_message'"),
        (COMPLETIONS, {"stream": True, "stream_options": {"usage": True}}, "Unknown field 'stream_options.usage'"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(client, path, fields, message):
    assert message in error_of(complete(client, path, **fields))["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {"prompt": "x"}, "model"),
        (COMPLETIONS, {"model": MODEL}, "prompt"),
        (COMPLETIONS, {"model": MODEL, "prompt": None}, "prompt"),
        (CHAT, {"messages": [HELLO]}, "model"),
        (CHAT, {"model": MODEL}, "messages"),
    ],
)
def test_a_missing_field_is_named(client, path, body, param):
    error = error_of(client.post(path, json=body))
    assert (error["param"], error["code"]) == (param, "missing_required_parameter")


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_another_model_is_404_and_the_served_one_is_named(client, path):
    error = error_of(complete(client, path, model="gpt"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert repr(MODEL) in error["message"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (COMPLETIONS, {"prompt": [5] * CONTEXT, "max_tokens": 1}, "prompt"),
        (COMPLETIONS, {"prompt": [5] * (CONTEXT - 2), "max_tokens": 3}, "prompt"),
        (COMPLETIONS, {"prompt": [[5], [5] * (CONTEXT + 1)]}, "prompt"),
        (CHAT, {"max_tokens": CONTEXT}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 4 * CONTEXT}]}, "messages"),
    ],
)
def test_a_prompt_that_does_not_fit_with_its_completion_is_refused_with_the_numbers(client, path, fields, param):
    error = error_of(complete(client, path, **fields))
    assert (error["param"], error["code"]) == (param, "context_length_exceeded")
    assert f"maximum context length is {CONTEXT} tokens" in error["message"]


def test_a_prompt_that_fills_the_context_with_its_completion_is_taken(client):
    assert complete(client, prompt=[5] * (CONTEXT - 3), max_tokens=3).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/embeddings", 404, "unknown_url"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", COMPLETIONS, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/completions/", 404, "unknown_url"),
    ],
)
def test_an_unknown_route_and_a_wrong_method_have_the_same_form(client, method, path, status, code):
    error = error_of(client.request(method, path), status)
    assert error["code"] == code


@pytest.mark.parametrize("field", ["prompt", "stop", "user_text"])
def test_half_a_surrogate_pair_is_refused(client, field):
    half = r'"\ud83d"'
    subject = f'"prompt": {half}' if field == "prompt" else f'"prompt": "x", "stop": {half}'
    path = COMPLETIONS
    if field == "user_text":
        path, subject = CHAT, f'"messages": [{{"role": "user", "content": {half}}}]'
    error = error_of(client.post(path, content=f'{{"model": "{MODEL}", {subject}}}'))
    assert "half a surrogate pair" in error["message"]


def test_what_the_sampler_refuses_is_a_400_with_its_words_and_cancels_the_rest_of_the_request():
    sampler = ScriptedSampler(refuse=lambda request: request.prompt == (9,))
    with client_of(sampler) as client:
        error = error_of(complete(client, prompt=[[5], [9]]))
        assert complete(client, prompt=[[5]]).status_code == 200
    assert error["message"] == "the sampler does not like this prompt"
    assert sampler.cancelled == [1]


def test_a_streamed_request_that_is_refused_gets_a_plain_400():
    with client_of(ScriptedSampler(refuse=lambda request: True)) as client:
        error_of(complete(client, stream=True))


def test_chat_without_a_chat_template_names_what_can_be_done():
    with client_of(tokenizer=tokenizer(None)) as client:
        error = error_of(complete(client, CHAT))
        assert complete(client).status_code == 200
    assert "use /v1/completions, or serve a folder with a template" in error["message"]


def test_messages_that_the_chat_template_refuses_are_a_400_with_its_words():
    picky = tokenizer("{{ raise_exception('the system comes first') }}")
    with client_of(tokenizer=picky) as client:
        assert "the system comes first" in error_of(complete(client, CHAT))["message"]


def test_more_completions_in_one_request_than_ever_fit_are_refused_for_good():
    with client_of(ScriptedSampler(slots=2), max_waiting=2) as client:
        assert complete(client, prompt=[[5], [6]], n=2).status_code == 200
        error = error_of(complete(client, prompt=[[5], [6], [7]], n=2))
    assert "6 completions in one request; this server takes at most 4" in error["message"]


def test_a_defect_is_a_500_in_the_form_and_its_traceback_is_in_the_log(caplog, monkeypatch):
    with client_of() as client:
        monkeypatch.setattr("iterpref_jax.serve.protocol.parse", lambda body: {}["missing"])
        error = error_of(complete(client), 500)
    assert (error["type"], error["param"]) == ("server_error", None)
    assert "missing" not in error["message"]
    assert "KeyError: 'missing'" in caplog.text

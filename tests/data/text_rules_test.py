"""What is derived from a tokenizer, and which tokenizers and settings are refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

from iterpref_jax.codeflow.focus import Focus
from iterpref_jax.data import text_rules, tokenize
from iterpref_jax.errors import UserError
from tests.data import tiny


def _rules(tokenizer, **changes):
    return text_rules.make_rules(tiny.settings(**changes), tokenizer)


def _ids(tokenizer, *tokens):
    return tuple(tokenizer.convert_tokens_to_ids(list(tokens)))


def test_a_raw_completion_ends_with_the_end_of_sequence_token():
    tokenizer = tiny.byte_level()
    assert _rules(tokenizer).eos_ids == _ids(tokenizer, "</s>")


def test_a_chat_completion_ends_with_the_templates_end_of_turn():
    tokenizer = tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE)
    assert _rules(tokenizer, template="chat").eos_ids == _ids(tokenizer, "<|end|>")


def test_the_end_of_turn_holds_what_stands_before_its_first_special_token():
    template = tiny.CHAT_TEMPLATE.replace("<|end|>", "\n<|end|></s>")
    tokenizer = tiny.byte_level(chat_template=template)
    newline = tuple(tokenizer("\n")["input_ids"])
    assert _rules(tokenizer, template="chat").eos_ids == newline + _ids(tokenizer, "<|end|>")


def test_a_template_without_special_end_falls_back_to_the_end_of_sequence():
    tokenizer = tiny.byte_level(chat_template="{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    assert _rules(tokenizer, template="chat").eos_ids == _ids(tokenizer, "</s>")


def test_no_end_of_sequence_is_wanted_means_none():
    assert _rules(tiny.byte_level(eos=None), eos="none").eos_ids == ()


def test_a_missing_end_of_sequence_is_refused_with_the_way_out():
    with pytest.raises(UserError, match=r"no end-of-sequence token.*eos = \"none\""):
        _rules(tiny.byte_level(eos=None))


def test_a_missing_chat_template_is_refused_with_the_way_out():
    with pytest.raises(UserError, match='no chat template: set "raw"'):
        _rules(tiny.byte_level(), template="chat")


def test_a_template_that_refuses_a_system_message_is_reported():
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny.CHAT_TEMPLATE
    )
    tokenizer = tiny.byte_level(chat_template=template)
    assert _rules(tokenizer, template="chat").chat_template == template
    with pytest.raises(UserError, match=r"refuses messages of the roles \['system', 'user'\].*no system"):
        _rules(tokenizer, template="chat", system="Be good.")


def test_a_template_that_hides_the_answer_is_refused():
    with pytest.raises(UserError, match="does not write the assistant's answer"):
        _rules(tiny.byte_level(chat_template="hello"), template="chat")


def test_only_tokenizers_that_put_a_space_in_front_need_a_guard():
    assert _rules(tiny.byte_level()).guard == ""
    rules = _rules(tiny.metaspace())
    assert rules.guard == "\n"
    assert len(rules.guard_ids) == 2  # the space and the newline


def test_rules_survive_json():
    rules = _rules(tiny.metaspace())
    assert text_rules.rules_from_json(json.loads(json.dumps(dataclasses.asdict(rules)))) == rules


def test_settings_outside_the_choices_are_refused_with_a_suggestion():
    with pytest.raises(UserError, match=r"text\.template must be one of chat, raw, not 'chatt'; did you mean 'chat'"):
        tiny.settings(template="chatt")


def test_a_tokenizer_without_exact_decoding_is_refused():
    backend = tokenizers.Tokenizer(models.WordLevel({"x": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="does not give text back byte for byte"):
        _rules(transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="x"))


def test_a_tokenizer_that_strips_spaces_is_refused():
    spec = json.loads(tiny.byte_level_json())
    spec["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": False}
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    with pytest.raises(UserError, match="changes the start of a text"):
        _rules(transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


def test_a_tokenizer_that_changes_plain_text_is_refused():
    spec = json.loads(tiny.byte_level_json())
    spec["model"]["vocab"] = {token: i for token, i in spec["model"]["vocab"].items() if "~" not in token}
    spec["model"]["merges"] = [merge for merge in spec["model"]["merges"] if "~" not in "".join(merge)]
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    with pytest.raises(UserError, match="does not give plain ASCII text back"):
        _rules(transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


def _ids_of(tokenizer, text):
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return backend.encode(text, add_special_tokens=False).ids


def test_text_is_read_as_tokenizer_json_says_whatever_class_transformers_picks_beside_the_model(tmp_path):
    tiny.metaspace().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    text = "def add(a, b):\n    return a + b\n"
    wanted = _ids_of(tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), text)
    assert _ids_of(text_rules.transformers_tokenizer(str(tmp_path)), text) != wanted
    loaded = text_rules.load_tokenizer(str(tmp_path))
    assert _ids_of(loaded, text) == wanted
    assert (loaded.eos_token, loaded.is_fast) == ("</s>", True)


def test_a_folder_without_tokenizer_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer at .*tokenizer\.json"):
        text_rules.load_tokenizer(str(tmp_path))


def test_an_empty_tokenizer_name_is_refused():
    with pytest.raises(UserError, match=r"text\.tokenizer is empty"):
        text_rules.load_tokenizer("")


def test_a_slow_tokenizer_is_refused(monkeypatch, tmp_path):
    class Slow:
        is_fast = False

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: Slow())
    with pytest.raises(UserError, match="no fast version"):
        text_rules.load_tokenizer(str(tmp_path))


def test_a_saved_and_loaded_tokenizer_has_the_same_fingerprint(tmp_path):
    tokenizer = tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE)
    tokenizer.save_pretrained(tmp_path)
    loaded = text_rules.load_tokenizer(str(tmp_path))
    assert text_rules.tokenizer_fingerprint(loaded) == text_rules.tokenizer_fingerprint(tokenizer)


def test_the_fingerprint_changes_with_template_special_tokens_and_vocabulary():
    tokenizers_ = [
        tiny.byte_level(),
        tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE),
        tiny.byte_level(eos="<|end|>"),
        tiny.byte_level(nfc=True),
        tiny.metaspace(),
    ]
    assert len(set(map(text_rules.tokenizer_fingerprint, tokenizers_))) == len(tokenizers_)


def test_the_fingerprint_does_not_change_with_use():
    tokenizer = tiny.byte_level()
    before = text_rules.tokenizer_fingerprint(tokenizer)
    tokenizer("a text", truncation=True, max_length=3)
    assert text_rules.tokenizer_fingerprint(tokenizer) == before


def test_another_tokenizer_than_the_records_is_refused():
    rules = _rules(tiny.byte_level())
    text_rules.check_tokenizer(tiny.byte_level(), rules, "here")
    with pytest.raises(UserError, match="here: not the tokenizer that made the records"):
        text_rules.check_tokenizer(tiny.metaspace(), rules, "here")


THINKING = tiny.CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<no thoughts>{% endif %}{% endif %}",
)


def _prompt(tokenizer, **kwargs):
    question = [{"role": "user", "content": "Q"}]
    return tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True, **kwargs)


def test_the_template_is_given_its_arguments():
    tokenizer = tiny.byte_level(chat_template=THINKING)
    rules = _rules(tokenizer, template="chat", template_kwargs={"enable_thinking": False})
    assert tokenize.Encoder(tokenizer, rules).prompt_text("Q", "code").endswith("assistant\n<no thoughts>")
    assert (
        tokenize.Encoder(tokenizer, _rules(tokenizer, template="chat")).prompt_text("Q", "code").endswith("assistant\n")
    )


def test_a_preset_template_has_the_arguments_as_its_defaults_once():
    tokenizer, kwargs = tiny.byte_level(chat_template=THINKING), {"enable_thinking": False, "name": "it's\n"}
    plain, without = _prompt(tokenizer), _prompt(tokenizer, enable_thinking=False)
    tokenizer.chat_template = text_rules.preset(THINKING, kwargs)
    assert (_prompt(tokenizer), _prompt(tokenizer, enable_thinking=True)) == (without, plain)
    assert text_rules.preset(tokenizer.chat_template, kwargs) == tokenizer.chat_template


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"template_kwargs": {"enable_thinkin": False}}, "does not mention it; did you mean 'enable_thinking'"),
        ({"template_kwargs": {"messages": []}}, "messages is written by the build itself"),
        ({"template_kwargs": {"enable_thinking": [1]}}, "must be a text, a number, true, false or null"),
        ({"template_kwargs": {"enable_thinking": False}, "template": "raw"}, r"\(enable_thinking\) has no effect"),
        ({"system": "Be good.", "template": "raw"}, r"text\.system has no effect"),
        ({"raw_separator": " ", "template": "chat"}, r"text\.raw_separator = ' ' has no effect"),
    ],
)
def test_arguments_without_effect_on_the_template_are_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        _rules(tiny.byte_level(chat_template=THINKING), **{"template": "chat"} | changes)


def test_rules_of_before_there_were_arguments_are_read():
    stored = dataclasses.asdict(_rules(tiny.byte_level()))
    del stored["template_kwargs"]
    assert text_rules.rules_from_json(stored).template_kwargs == {}


def test_an_export_with_the_arguments_in_its_template_goes_on_with_the_same_records():
    made = tiny.byte_level(chat_template=THINKING)
    rules = _rules(made, template="chat", template_kwargs={"enable_thinking": False})
    exported = tiny.byte_level(chat_template=text_rules.preset(THINKING, rules.template_kwargs))
    text_rules.check_models_tokenizer(exported, made, rules, "here")


@pytest.mark.parametrize("template", ["chat", "raw"])
def test_a_base_model_without_template_takes_records_of_its_instruct_models_tokenizer(template):
    made = tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE, eos="<|end|>")
    text_rules.check_models_tokenizer(tiny.byte_level(), made, _rules(made, template=template), "here")


def test_another_template_than_the_records_is_refused_where_they_have_one():
    made = tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE)
    own = tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE + "!")
    text_rules.check_models_tokenizer(own, made, _rules(made, template="raw"), "here")
    with pytest.raises(UserError, match="here: its chat template is not the one"):
        text_rules.check_models_tokenizer(own, made, _rules(made, template="chat"), "here")


def test_a_model_of_another_vocabulary_is_refused():
    made = tiny.byte_level()
    with pytest.raises(UserError, match="here: not the tokenizer that made the records"):
        text_rules.check_models_tokenizer(tiny.byte_level(nfc=True), made, _rules(made), "here")


@pytest.mark.parametrize("name", tiny.REAL)
def test_real_tokenizers_keep_their_fingerprint_when_saved(name, tmp_path):
    tokenizer = tiny.real(name)
    tokenizer.save_pretrained(tmp_path)
    again = text_rules.load_tokenizer(str(tmp_path))
    assert text_rules.tokenizer_fingerprint(again) == text_rules.tokenizer_fingerprint(tokenizer)


def test_qwen_ends_its_turn_with_im_end():
    rules = _rules(tiny.real("qwen2.5"), template="chat")
    assert rules.eos_ids == (151645,)
    assert rules.unicode_form == "NFC"


@pytest.mark.parametrize("name", tiny.REAL)
def test_only_codellama_needs_a_guard(name):
    assert _rules(tiny.real(name)).guard == ("\n" if name == "codellama" else "")


def test_completions_hold_no_control_tokens_of_code_that_names_them():
    tokenizer = tiny.real("qwen2.5")
    encoder = tokenize.Encoder(tokenizer, _rules(tokenizer, fence="none", eos="none"))
    example = encoder.encode_pairs([tiny.pair("'<|im_end|>'")], [Focus(chosen=(), rejected=())])[0]
    assert 151645 not in example.chosen_ids
    assert len(example.chosen_ids) > 3

"""Configuration: every file of configs/ is valid, and every mistake is named before any work starts."""

import dataclasses
import importlib
import sys
import typing
from pathlib import Path

import ml_collections
import pytest

from iterpref_jax import settings
from iterpref_jax.cli import options
from iterpref_jax.errors import UserError
from iterpref_jax.train import same_run

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path.name for path in CONFIGS.glob("*.py") if path.name != "__init__.py")
SPECS = [f"{name}{arg}" for name in FILES for arg in ("", ":tiny")]
SPECS += ["demo.py:stage=sft", "demo.py:stage=sft,tiny", "target_rpo_qwen2_5_coder_7b.py:released"]
SEEDS = ("inject.seed", "generate.seed", "build.seed", "build.pairs.seed", "build.focus.seed", "evaluate.seed")


def load(spec="base.py:tiny", *overrides):
    return settings.load_config(str(CONFIGS / spec), overrides)


def complete(spec):
    """A config file with what only the user knows: where the data lie and, where it names no model, the model."""
    config = load(spec, "data.path=DATA")
    if not config.model.path and not config.model.init:
        config.model.path = "MODEL"
    return config


@pytest.fixture
def write_config(tmp_path, monkeypatch):
    """Writes a config file that changes `base.py:tiny` by some lines; returns its path."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(*lines):
        path = tmp_path / "mine.py"
        body = ["config = base.get_config('tiny')", "config.data.path = 'DATA'", *lines, "return config"]
        path.write_text("from configs import base\ndef get_config(arg=''):\n" + "".join(f"    {x}\n" for x in body))
        return str(path)

    return write


@pytest.mark.parametrize("spec", SPECS)
def test_every_config_file_gives_valid_settings_of_every_command(spec):
    config = complete(spec)
    assert settings.read_run(config).data.path == "DATA"
    for section in settings.SECTIONS:
        settings.read_section(config, section)


@pytest.mark.parametrize("spec", SPECS)
def test_a_config_stored_with_a_run_gives_the_same_settings(spec):
    config = complete(spec)
    stored = settings.from_json(settings.to_json(config))
    assert settings.read_run(stored) == settings.read_run(config)
    for section in settings.SECTIONS:
        assert settings.read_section(stored, section) == settings.read_section(config, section)


def config_fields(node, path=""):
    for key, value in node.items():
        if isinstance(value, ml_collections.ConfigDict) and value:
            yield from config_fields(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def dataclass_fields(kind, path=""):
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from dataclass_fields(hints[field.name], f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}"


def test_every_field_of_base_is_read_by_exactly_one_dataclass_field():
    readers = [(settings.RUN_SECTION, ""), *((where, f"{name}.") for name, where in settings.SECTIONS.items())]
    read = []
    for (module, name), path in readers:
        read += dataclass_fields(getattr(importlib.import_module(module), name), path)
    assert len(read) == len(set(read))
    assert sorted(read) == sorted(config_fields(load("base.py")))


def test_no_dataclass_of_settings_holds_a_default():
    for module, name in (settings.RUN_SECTION, *settings.SECTIONS.values()):
        kinds = [getattr(importlib.import_module(module), name)]
        for kind in kinds:
            for field in dataclasses.fields(kind):
                assert field.default is dataclasses.MISSING, f"{kind.__name__}.{field.name}: configs/base.py has it"
                assert field.default_factory is dataclasses.MISSING, f"{kind.__name__}.{field.name}"
            kinds += filter(dataclasses.is_dataclass, typing.get_type_hints(kind).values())


def test_the_seed_reaches_everything_that_is_drawn():
    config = load("base.py:tiny", "seed=7", "data.path=DATA")
    seeds = {path: value for path, value in flat(config).items() if path.split(".")[-1] == "seed"}
    assert seeds == {"seed": 7, **dict.fromkeys(SEEDS, 7)}
    assert settings.read_run(config).seed == settings.read_run(config).weighting.seed == 7
    assert settings.read_section(config, "build").pairs.seed == 7


@pytest.mark.parametrize("path", SEEDS)
def test_a_seed_of_one_section_leaves_the_others_alone(path):
    config = flat(load("base.py", f"{path}=7"))
    assert config[path] == 7
    assert [config[other] for other in ("seed", *SEEDS) if other != path] == [0] * len(SEEDS)


def test_another_tokenizer_of_the_build_does_not_change_the_model():
    config = load("target_rpo_qwen2_5_coder_7b.py", "build.text.tokenizer=OTHER")
    assert (config.model.path, config.build.text.tokenizer) == ("Qwen/Qwen2.5-Coder-7B", "OTHER")


def test_another_model_brings_its_tokenizer():
    config = load("target_rpo_qwen2_5_coder_7b.py", "model.path=OTHER")
    assert config.build.text.tokenizer == "OTHER"


def test_tiny_shrinks_the_model_and_keeps_the_tokenizer():
    full, tiny = (load(f"target_rpo_qwen2_5_coder_7b.py{arg}") for arg in ("", ":tiny"))
    assert tiny.build.text.tokenizer == full.build.text.tokenizer != ""


def flat(config):
    return {path: _at(config, path) for path in config_fields(config)}


def _at(config, path):
    for key in path.split("."):
        config = config[key]
    return config


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("objective.link.beta=1", "objective.link.beta", 1.0),
        ("optimizer.learning_rate=5e-6", "optimizer.learning_rate", 5e-6),
        ("train.steps=12", "train.steps", 12),
        ("rows.truncate=False", "rows.truncate", False),
        ("mesh.fsdp=-1", "mesh.fsdp", -1),
        ("model.path=a=b", "model.path", "a=b"),
        ("build.text.raw_separator=", "build.text.raw_separator", ""),
        ("build.filters.benchmarks=one.jsonl", "build.filters.benchmarks", ("one.jsonl",)),
        ("build.filters.benchmarks=('a', 'b')", "build.filters.benchmarks", ("a", "b")),
        ("model.init.num_hidden_layers=3", "model.init.num_hidden_layers", 3),
    ],
)
def test_an_override_has_the_type_of_its_field(override, path, value):
    found = _at(load("base.py:tiny", override), path)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objectve.alpha=0", r"--config\.objectve\.alpha: there is no 'objectve'; did you mean 'objective'\?"),
        ("objective.alhpa=0", r"--config\.objective\.alhpa: there is no 'alhpa'; did you mean 'alpha'\?"),
        ("train.steps.more=1", r"--config\.train\.steps\.more: there is no 'more': train.steps is 6, no section"),
        ("model.init.rope_theta.factor=2", "there is no 'factor': model.init.rope_theta is 10000.0, no section"),
        ("train.steps=many", r"--config\.train\.steps=many: expected int"),
        ("train.steps=1.5", r"--config\.train\.steps=1\.5: expected int"),
        ("train.steps=True", r"--config\.train\.steps=True: expected int"),
        ("rows.truncate=1", r"--config\.rows\.truncate=1: expected bool"),
        ("objective.link.beta=high", r"--config\.objective\.link\.beta=high: expected float"),
        ("objective.link=sigmoid", r"--config\.objective\.link is a section; set one of beta, "),
        ("train.steps", r"--config\.train\.steps: write --config\.train\.steps=VALUE"),
    ],
)
def test_an_override_that_fits_no_field_is_named(override, message):
    with pytest.raises(UserError, match=message):
        load("base.py:tiny", override)


def test_overrides_below_a_free_form_make_the_sections_that_are_missing():
    words = (
        "endpoint.extra.chat_template_kwargs.enable_thinking=False",
        "endpoint.extra.chat_template_kwargs.more.b=1",
    )
    config = load("base.py:tiny", *words, "model.init.rope_scaling.factor=4.0")
    extra = settings.read_section(config, "endpoint").extra
    assert extra == {"chat_template_kwargs": {"enable_thinking": False, "more": {"b": 1}}}
    assert settings.read_model(config)[0].init["rope_scaling"] == {"factor": 4.0}


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    config = load("base.py:tiny", "data.path=DATA", f"seed={seed}")
    with pytest.raises(UserError, match=rf"^seed must be at least 0 and below 2\*\*63, got {seed}"):
        settings.read_run(config)
    with pytest.raises(UserError, match=r"evaluate\.seed must be"):
        settings.read_section(config, "evaluate")


@pytest.mark.parametrize("rest", [[], ["--workdir=RUN"], ["--workdir", "RUN"]])
def test_an_override_without_a_value_is_named_and_takes_no_other_flag_as_its_value(rest):
    arguments = options.parser("train", "")
    options.add_config(arguments)
    arguments.add_argument("--workdir")
    words = [f"--config={CONFIGS}/base.py:tiny", "--config.model.path", *rest]
    with pytest.raises(UserError, match=r"--config\.model\.path: write --config\.model\.path=VALUE"):
        options.parse_with_config(arguments, words)


@pytest.mark.parametrize("words", [["--config.mesh.fsdp=-1"], ["--config.mesh.fsdp", "-1"]])
def test_an_override_is_one_word_or_two(words):
    arguments = options.parser("train", "")
    options.add_config(arguments)
    _, config = options.parse_with_config(arguments, [f"--config={CONFIGS}/base.py:tiny", *words])
    assert config.mesh.fsdp == -1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("base.py:tinny", r"base\.py:tinny: unknown option 'tinny', known: tiny; did you mean 'tiny'\?"),
        ("base.py:tiny=yes", r"base\.py:tiny=yes: option 'tiny' is a switch"),
        ("demo.py:stage", r"demo\.py:stage: option 'stage' needs a value: stage=target_rpo"),
        ("demo.py:stage=dpo", r"demo\.py:stage=dpo: stage must be sft or target_rpo, not 'dpo'"),
        ("bas.py", r"bas\.py does not exist; did you mean 'base\.py'\?"),
    ],
)
def test_a_config_spec_that_is_misspelt_is_named(spec, message):
    with pytest.raises(UserError, match=message):
        load(spec)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.train.epoch = 2.0", r"train has an unknown key 'epoch'; did you mean 'epochs'\?"),
        ("config.objective.link.bta = 0.2", r"objective\.link has an unknown key 'bta'; did you mean 'beta'\?"),
        ("config.learning_rate = 1e-5", r"the config has an unknown key 'learning_rate'"),
        ("config.rows.tokens = '4096'", r"mine\.py, line 5: .*'tokens'"),
        ("config.train = 3", r"mine\.py, line 5: .*'train'"),
        ("del config.train.steps", r"the config lacks train\.steps; every field stands in configs/base\.py"),
        ("del config.rows", r"the config lacks rows"),
        ("config.data.path = ''", r"data\.path"),
        ("config.modle.path = 'X'", r"mine\.py, line 5: .*Did you mean .model."),
    ],
)
def test_a_mistake_in_a_config_file_is_named(line, message, write_config):
    with pytest.raises(UserError, match=message):
        settings.read_run(settings.load_config(write_config(line)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.build.pairs.chose = 'all'", r"build\.pairs has an unknown key 'chose'; did you mean 'choose'\?"),
        ("config.build.pairs.choose = 'lst'", r"lst.*did you mean 'last'\?"),
        ("config.build.text.template = 'chatt'", r"text\.template.*did you mean 'chat'\?"),
        ("config.build.focus.mode = 'lines'", r"lines.*did you mean 'line'\?"),
        ("config.build.filters.benchmarks = 'b.jsonl'", r"mine\.py, line 5: .*'benchmarks'"),
        ("del config.build", r"the config lacks build"),
    ],
)
def test_a_mistake_in_the_build_section_is_named(line, message, write_config):
    with pytest.raises(UserError, match=message):
        settings.read_section(settings.load_config(write_config(line)), "build")


def test_a_config_file_without_get_config_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "empty.py").write_text("config = 1\n")
    with pytest.raises(UserError, match=r"empty\.py defines no get_config"):
        settings.load_config(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.recipe=target_dpo"], r"objective\.alpha = 1\.0 has no effect with recipe 'target_dpo'"),
        (["objective.alpha=0"], r"recipe 'target_rpo' adds alpha \* NLL: objective\.alpha must be above 0"),
        (["objective.recipe=target_rop"], r"objective\.recipe 'target_rop' .*did you mean 'target_rpo'\?"),
        (["objective.nll_norm=tokens"], r"objective\.nll_norm must be one of example, token, sum"),
        (
            ["objective.link.name=hinge", "objective.link.label_smoothing=0.1"],
            r"objective\.link\.label_smoothing = 0\.1 has no effect with link 'hinge'",
        ),
        (["objective.link.dpop_lambda=5"], r"objective\.link\.dpop_lambda = 5\.0 has no effect with link 'sigmoid'"),
        (["objective.link.name=exo_pair"], r"link 'exo_pair' needs objective\.link\.label_smoothing above 0"),
        (["objective.link.name=sigmod"], r"objective\.link\.name 'sigmod' .*did you mean 'sigmoid'\?"),
        (["objective.link.beta=0"], r"objective\.link\.beta must be above 0"),
        (["train.epochs=1"], r"train\.steps = 6 and train\.epochs = 1\.0: set one of them to 0"),
        (["train.steps=0"], r"set train\.epochs \(or train\.steps\) above 0"),
        (["model.path=M"], r"exactly one of model\.path .* and model\.init"),
        (["rows.layout=shred"], r"rows\.layout .*did you mean 'shared'\?"),
        (["optimizer.schedule=cosin"], r"optimizer\.schedule must be one of cosine"),
        (["model.compute.remat=ful"], r"model\.compute\.remat .*did you mean 'full'\?"),
        (["model.compute.attention=palas"], r"model\.compute\.attention"),
    ],
)
def test_settings_that_contradict_each_other_or_do_nothing_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        settings.read_run(load("base.py:tiny", "data.path=DATA", *overrides))


def test_sections_that_training_does_not_read_may_change_when_a_run_goes_on():
    assert [section for section in settings.SECTIONS if not same_run.may_change(section)] == []

"""Every command that a page names is one: its flags, config file and fields exist, and launchers accept it.

Nothing runs but argument parsers and dry runs; `start_test.py` runs what ends in seconds.
"""

import importlib
import re
import sys

import pytest

from iterpref_jax import settings
from iterpref_jax.__main__ import COMMANDS
from iterpref_jax.cli import options
from iterpref_jax.errors import UserError
from tests.docs.pages import PAGES, ROOT, Command, commands
from tests.launch.shell import calls, launch

FOUND = [command for page in PAGES for command in commands(page)]
OF_PROGRAM = {
    program: [command for command in FOUND if command.words[0] == program] for program in ("iterpref", "bash", "python")
}
BASE = "configs/base.py"
LAUNCHERS_OF_A_RUN = ("tpu_pod.sh", "gke_jobset.sh", "slurm.sh", "gpu_node.sh", "skypilot.sh")


class Parsed(Exception):
    """Ends a command as soon as its flags are read."""


def filled(word: str) -> str:
    """A word with values for what stands in capitals or as dots: C, $C and ... are configs, N and I numbers."""
    flag, equals, value = word.partition("=")
    if flag == "--config" and re.fullmatch(r"\$?[A-Z]+|\.\.\.", value):
        return f"--config={BASE}"
    return f"{flag}=1" if equals and re.fullmatch(r"[A-Z]", value) else word


def parsed(command: Command, monkeypatch) -> tuple[object, list[str]]:
    """The flags and overrides of an `iterpref` command, by its own parser."""
    _, name, *rest = map(filled, command.words)
    assert name in COMMANDS, command
    read = options.parse

    def parse(arguments, argv):
        for action in arguments._actions:
            action.required = action.required and command.is_whole
        raise Parsed(*read(arguments, argv))

    monkeypatch.setattr(options, "parse", parse)
    with pytest.raises(Parsed) as found:
        importlib.import_module(f"iterpref_jax.cli.{name}").main(rest)
    return found.value.args


def check(command: Command, monkeypatch) -> None:
    """Parses the command and reads every section; a run needs data and a model, which a page may name elsewhere."""
    chosen, overrides = parsed(command, monkeypatch)
    file = getattr(chosen, "config", None) or BASE
    if command.words[1] == "sweep" and chosen.config:
        # Its overrides are those of the base config of all variants.
        sweep = settings.read_sweep(settings.load_config(file))
        file = str((ROOT / file.partition(":")[0]).parent / sweep.config)
    config = settings.load_config(file, overrides)
    for section in settings.SECTIONS:
        settings.read_section(config, section)
    if command.words[1] in ("train", "reference", "plan", "doctor"):
        config.data.path = config.data.path or "DATA"
        config.model.path = config.model.path or ("" if config.model.init else "MODEL")
        settings.read_run(config)


def test_pages_name_commands_of_each_kind():
    assert all(len(found) > 9 for found in OF_PROGRAM.values())
    assert {command.words[1] for command in OF_PROGRAM["iterpref"]} >= {"inject", "build", "train", "plan", "export"}


@pytest.mark.parametrize("command", OF_PROGRAM["iterpref"], ids=str)
def test_an_iterpref_command_has_flags_and_fields_that_exist(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(command, monkeypatch)


@pytest.mark.parametrize("command", OF_PROGRAM["bash"], ids=str)
def test_a_launcher_accepts_the_command(command, tmp_path):
    _, script, *words = command.words
    script = script.removeprefix("launch/")
    at = words.index("--") if "--" in words else len(words)
    own, run = words[:at], [filled(word) for word in words[at + 1 :]]
    if script not in LAUNCHERS_OF_A_RUN:
        # Options are read up to --help, which ends it.
        ended = launch(tmp_path, script, *own, "--help")
    else:
        run = run or ([f"--config={BASE}", "--workdir=gs://B/RUN"] if at < len(words) else [])
        ended = launch(tmp_path, script, *own, "--dry-run", *(["--", *run] if run else []))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert calls(tmp_path) == []


@pytest.mark.parametrize("command", OF_PROGRAM["python"], ids=str)
def test_a_script_accepts_the_command(command, monkeypatch, tmp_path):
    _, script, *words = command.words
    assert (ROOT / script).is_file()
    if not script.startswith("benchmarks/"):
        assert command.page == "docs/start.md", "start_test.py runs the commands of that page alone"
        return
    folder, _, name = script.removesuffix(".py").partition("/")
    monkeypatch.syspath_prepend(str(ROOT / folder))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script, *words])
    if name == "decode_speed":
        pytest.importorskip("torch", reason="decode_speed.py compares with PyTorch: pip install 'iterpref_jax[parity]'")
    # Of kernels.py, which reads the flags of gpu_tiles.py.
    module = importlib.import_module("kernels" if name == "gpu_tiles" else name)
    found = module.parse(words) if hasattr(module, "parse") else module.flags()
    overrides = [word.removeprefix("--config.") for word in words if word.startswith("--config.")]
    settings.load_config(BASE, overrides)
    assert found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iterpref trian --workdir=RUN", "trian"),
        ("iterpref train --config=configs/base.py --workdir=RUN --workdirr=RUN", "unknown argument '--workdirr=RUN'"),
        ("iterpref train --config=configs/bsae.py --workdir=RUN", "did you mean 'base.py'"),
        ("iterpref train --config=configs/base.py --workdir=RUN --config.train.stepps=3", "there is no 'stepps'"),
        ("iterpref train --config=configs/base.py --workdir=RUN --config.objective.recipe=dop", "dop"),
    ],
)
def test_a_command_that_is_wrong_is_found(text, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = Command("page", tuple(text.split()), is_whole=True)
    with pytest.raises((UserError, AssertionError), match=re.escape(message)):
        check(command, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_extras_that_exist(page):
    setup = (ROOT / "setup.py").read_text()
    extras = set(re.findall(r'^    "(\w+)": \[', setup, re.MULTILINE))
    named = set(re.findall(r"(?:\.|iterpref_jax)\[([a-z0-9]+)\]", page.read_text(encoding="utf-8")))
    assert named <= extras

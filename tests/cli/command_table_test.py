"""The command line: exit statuses, help of every command, frozen options, and what may be imported for it."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from iterpref_jax import __version__
from iterpref_jax.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]

# What users' scripts rely on. A change here is a change of the interface: make it on purpose, and say so in the commit.
OPTIONS = {
    "inject": ["-h, --help", "--config FILE[:ARG]", "--source NAME_OR_FILE", "--out FILE"],
    "import": [
        "-h, --help",
        "--config FILE[:ARG]",
        "--form NAME",
        "--in PATH",
        "--tests FILE",
        "--setup FILE",
        "--column FIELD=NAME",
        "--out DIR",
    ],
    "build": ["-h, --help", "--config FILE[:ARG]", "--input FILE", "--out DIR"],
    "show": [
        "PATH",
        "-h, --help",
        "--html FILE",
        "--limit N",
        "--pair ID",
        "--split SPLIT",
        "--config FILE[:ARG]",
        "--recipe NAME",
        "--nll_norm {example,token,sum}",
    ],
    "generate": [
        "-h, --help",
        "--config FILE[:ARG]",
        "--out FOLDER",
        "--tasks FILE",
        "--from-samples N",
        "--shard I/N",
        "--ray ADDRESS",
    ],
    "merge": ["FOLDER", "-h, --help", "--out FOLDER"],
    "rounds": ["-h, --help", "--config FILE[:ARG]", "--out FOLDER", "--tasks FILE"],
    "plan": [
        "-h, --help",
        "--config FILE[:ARG]",
        "--topology CHIP:SHAPE",
        "--slices N",
        "--pairs N",
        "--largest",
        "--search",
        "--json FILE",
    ],
    "reference": [
        "-h, --help",
        "--config FILE[:ARG]",
        "--workdir DIR",
        "--coordinator HOST:PORT",
        "--processes N",
        "--process I",
    ],
    "doctor": [
        "-h, --help",
        "--config FILE[:ARG]",
        "--workdir DIR",
        "--json FILE",
        "--coordinator HOST:PORT",
        "--processes N",
        "--process I",
    ],
    "train": [
        "-h, --help",
        "--config FILE[:ARG]",
        "--workdir DIR",
        "--coordinator HOST:PORT",
        "--processes N",
        "--process I",
    ],
    "heldout": [
        "-h, --help",
        "--workdir DIR",
        "--step N|best",
        "--model DIR",
        "--config FILE[:ARG]",
        "--out DIR",
        "--reference DIR",
        "--coordinator HOST:PORT",
        "--processes N",
        "--process I",
    ],
    "sample": [
        "-h, --help",
        "--config FILE[:ARG]",
        "--model DIR",
        "--workdir DIR",
        "--step N|best",
        "--input FILE",
        "--out FILE",
        "--chat",
        "--n N",
        "--seed SEED",
        "--max_tokens MAX_TOKENS",
        "--temperature TEMPERATURE",
        "--top_p TOP_P",
        "--top_k TOP_K",
        "--stop STOP",
    ],
    "eval": [
        "-h, --help",
        "--config FILE[:ARG]",
        "--model DIR",
        "--workdir DIR",
        "--step N|best",
        "--benchmark NAME",
        "--data FILE",
        "--out DIR",
        "--samples FILE",
        "--endpoint",
        "--score-only",
        "--prompt-style STYLE",
        "--compat NAME",
        "--n N",
        "--temperature T",
        "--limit N",
    ],
    "compare": ["RUN", "-h, --help", "--out DIR"],
    "serve": [
        "-h, --help",
        "--config FILE[:ARG]",
        "--model DIR",
        "--workdir DIR",
        "--step N|best",
        "--host HOST",
        "--port PORT",
        "--served-model-name NAME",
    ],
    "sweep": [
        "-h, --help",
        "--config FILE[:ARG]",
        "--workdir DIR",
        "--input [NAME=]FILE",
        "--only VARIANT[/SEED]",
        "--baseline VARIANT",
        "--print-jobs",
    ],
    "export": [
        "-h, --help",
        "--workdir DIR",
        "--out DIR",
        "--step N|best",
        "--dtype {float32,bfloat16,float16}",
        "--max_shard_gb MAX_SHARD_GB",
        "--adapters",
    ],
}


def help_of(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_help_with_its_purpose(command, capsys, monkeypatch):
    usage, purpose, *_ = help_of(command, capsys, monkeypatch).split("\n\n")
    assert usage.startswith(f"usage: iterpref {command} ")
    assert purpose.startswith(f"`iterpref {command}`: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_of_every_command_are_frozen(command, capsys, monkeypatch):
    text = help_of(command, capsys, monkeypatch)
    assert re.findall(r"^  (\S+(?: \S+)*)", text, re.MULTILINE) == OPTIONS[command]


def test_every_command_has_frozen_options():
    assert OPTIONS.keys() == COMMANDS.keys()


def test_every_command_of_the_table_is_one_file_and_every_file_a_command():
    shared = {"__init__", "hosts", "model", "options", "stored"}
    assert {path.stem for path in (ROOT / "iterpref_jax" / "cli").glob("*.py")} - shared == set(COMMANDS)


@pytest.mark.parametrize(("argv", "status"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_the_command_table_is_shown_without_a_command(argv, status, capsys):
    assert main(argv) == status
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in COMMANDS)


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_an_unknown_command_gets_the_closest_one_and_status_2(capsys):
    assert main(["trian", "--workdir=RUN"]) == 2
    assert "unknown command 'trian'; did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_what_it_needs_exits_with_status_2(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command])
    assert stopped.value.code == 2
    assert "required" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["export", "--workdir=A", "--out=B", "--stepp=3"], "unknown argument '--stepp=3'; did you mean '--step'?"),
        (["train", "--config=A", "--workdir=B", "more"], "unknown argument 'more'"),
        (["build", "--config=base", "--inp=A", "--input=A", "--out=B"], "unknown argument '--inp=A'"),
        (["train", "--config=configs/bsae.py", "--workdir=B"], "bsae.py does not exist; did you mean 'base.py'?"),
        (["export", "--workdir=NOWHERE", "--out=B"], "config.json does not exist"),
    ],
)
def test_a_user_error_is_one_message_without_traceback_and_status_1(argv, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"iterpref {argv[0]}: error: ")
    assert message in error
    assert "Traceback" not in error


def test_an_interrupt_ends_with_status_130(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("iterpref_jax.cli.build"), "main", interrupted)
    assert main(["build"]) == 130
    assert capsys.readouterr().err == "iterpref build: interrupted\n"


def test_a_defect_keeps_its_traceback(monkeypatch):
    def broken(argv):
        raise ZeroDivisionError

    monkeypatch.setattr(importlib.import_module("iterpref_jax.cli.build"), "main", broken)
    with pytest.raises(ZeroDivisionError):
        main(["build"])


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "iterpref_jax"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stderr) == (2, "")
    assert ended.stdout.startswith("usage: iterpref COMMAND")


@pytest.mark.parametrize("words", [[], ["inject", "--help"], ["build", "--help"]], ids=" ".join)
def test_light_commands_start_without_jax(words):
    script = (
        "import contextlib, sys\n"
        "from iterpref_jax.__main__ import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(sys.argv[1:])\n"
        "heavy = {'jax', 'flax', 'torch', 'tensorflow', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, ""), "import JAX inside the function that needs it"


def test_the_sections_of_light_commands_are_read_without_jax():
    script = (
        "import sys\n"
        "from iterpref_jax import settings\n"
        "config = settings.load_config('configs/base.py')\n"
        "for section in settings.SECTIONS: settings.read_section(config, section)\n"
        "sys.exit('imported jax' if 'jax' in sys.modules else 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")

"""The `iterpref` command table; only the chosen command is imported."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

from iterpref_jax import __version__
from iterpref_jax.errors import UserError, did_you_mean

COMMANDS = {
    "inject": "make debugging histories from code with tests, by injecting bugs (no LLM)",
    "generate": "let a model behind an endpoint write programs and debug them until their tests pass",
    "merge": "put the folders of a generation in shards together",
    "import": "make verified debugging histories from repairs, submissions, traces, problems or git",
    "build": "histories or preference pairs -> token records with focus masks",
    "show": "look at pairs and records: focus, weights, the tree (terminal or HTML)",
    "doctor": "look for what would keep a run from working, on one machine or on all hosts",
    "reference": "compute the reference log-probs of a dataset once, ahead of training",
    "plan": "memory, collectives and time of a training step on accelerators that need not be there",
    "train": "train, evaluate on held-out tasks, checkpoint; the same command resumes",
    "rounds": "on-policy: write and debug programs with the current model, train it on its pairs, and again",
    "heldout": "how a checkpoint or folder ranks held-out repairs above bugs: by segment, error type, size",
    "sample": "complete a file of prompts with a model folder or a run's checkpoint",
    "eval": "score a model, an endpoint or stored answers on a benchmark; scores with intervals, errors, a report",
    "compare": "several runs of `eval` side by side: which tasks flipped, McNemar's test, paired bootstrap",
    "serve": "answer OpenAI-compatible requests from a model folder or a run's checkpoint",
    "sweep": "an ablation: variants x seeds, trained and evaluated, in one table with intervals; resumes",
    "export": "write a checkpoint as a folder that transformers loads",
}

_PATH_ERRORS = (PermissionError, IsADirectoryError, NotADirectoryError, FileNotFoundError, FileExistsError)
_DISK_FULL = (
    "no space left on the disk ({error}). Whatever was whole is kept: make room and run the same command again, "
    "it goes on from the last finished part or checkpoint"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 user error, 2 bad usage, 75 start again, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(__version__)
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        print(f"iterpref: unknown command {command!r}{did_you_mean(command, COMMANDS)}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"iterpref_jax.cli.{command}").main(rest) or 0
    except UserError as error:
        print(f"iterpref {command}: error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if _is_disk_full(error):
            message = _DISK_FULL.format(error=error)
        elif isinstance(error, _PATH_ERRORS) and error.filename:
            message = f"{error.filename}: {error.strerror}; check the path and its permissions"
        else:
            raise
        print(f"iterpref {command}: error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"iterpref {command}: interrupted", file=sys.stderr)
        return 130


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind this error; libraries wrap it, some with its text alone."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "usage: iterpref COMMAND [options]   (iterpref COMMAND --help)\n\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

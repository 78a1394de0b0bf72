"""What commands share: `--config FILE[:ARG]` and `--config.KEY=VALUE` overrides."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from iterpref_jax import settings
from iterpref_jax.errors import UserError, did_you_mean

_OVERRIDE = "--config."


def parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of a command; abbreviations are off, so that a misspelt flag is an error."""
    return argparse.ArgumentParser(
        prog=f"iterpref {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_config(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="an ml_collections file, such as configs/demo.py:tiny; override fields with --config.KEY=VALUE",
    )


def parse(arguments: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options and the overrides (`KEY=VALUE`); `--config.KEY VALUE` works as well."""
    overrides, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith(_OVERRIDE):
            rest.append(word)
        elif "=" in word or not words or words[0].startswith("--"):
            overrides.append(word.removeprefix(_OVERRIDE))
        else:
            overrides.append(f"{word.removeprefix(_OVERRIDE)}={words.pop(0)}")
    options, unknown = arguments.parse_known_args(rest)
    if unknown:
        known = [flag for action in arguments._actions for flag in action.option_strings]
        raise UserError(f"unknown argument {unknown[0]!r}{did_you_mean(unknown[0].partition('=')[0], known)}")
    return options, overrides


def local_path(path: str) -> Path:
    """Returns the path that results are written to; a bucket is refused before anything is computed."""
    if "://" in path:
        raise UserError(f"--out={path}: this is written to a local or mounted folder; name one, and copy it then")
    return Path(path)


def parse_with_config(
    arguments: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    """Returns the options and the loaded config with its overrides."""
    options, overrides = parse(arguments, argv)
    return options, settings.load_config(options.config, overrides)

"""`iterpref show`: look at pairs and records: focus, weights and the tree, on the terminal or as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

import rich.console

from iterpref_jax import settings
from iterpref_jax.cli import options
from iterpref_jax.errors import UserError
from iterpref_jax.objectives.weights import NLL_NORMS, RECIPES
from iterpref_jax.progress import say
from iterpref_jax.view import page as view_html
from iterpref_jax.view import source as view_source
from iterpref_jax.view import terminal as view_terminal

TERMINAL_LIMIT = 5
PAGE_LIMIT = 100


def main(argv: Sequence[str]) -> None:
    arguments = options.parser("show", __doc__)
    arguments.add_argument("path", metavar="PATH", help="a dataset folder, or a file of trajectories or pairs")
    arguments.add_argument("--html", default="", metavar="FILE", help="write a page that needs nothing but a browser")
    arguments.add_argument(
        "--limit", type=int, metavar="N", help=f"pairs to show (default: {TERMINAL_LIMIT}, in a page {PAGE_LIMIT})"
    )
    arguments.add_argument("--pair", default="", metavar="ID", help="only pairs whose id contains this")
    arguments.add_argument("--split", default="", help="of a dataset folder (default: train)")
    arguments.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        help="for files: how pairs, focus and tokens are made (section `build`); override with --config.KEY=VALUE",
    )
    arguments.add_argument(
        "--recipe",
        default="",
        metavar="NAME",
        help=f"whose weights: {', '.join(RECIPES)} (default: target_rpo, or one that fits the focus)",
    )
    arguments.add_argument("--nll_norm", default="example", choices=NLL_NORMS, help="NLL normaliser (default: example)")
    chosen, overrides = options.parse(arguments, argv)
    shown = view_source.read(chosen.path, _wanted(chosen), _build(chosen.config, overrides))
    if chosen.html:
        view_html.write(shown, chosen.html)
        say(f"page with {len(shown.pairs)} of {shown.total} pairs: {chosen.html}")
    else:
        view_terminal.paint(shown, rich.console.Console(highlight=False))


def _wanted(chosen) -> view_source.Wanted:
    limit = chosen.limit if chosen.limit is not None else PAGE_LIMIT if chosen.html else TERMINAL_LIMIT
    return view_source.Wanted(
        limit=limit, pair=chosen.pair, split=chosen.split, recipe=chosen.recipe, nll_norm=chosen.nll_norm
    )


def _build(config: str | None, overrides: list[str]):
    if config is None:
        if overrides:
            raise UserError(f"--config.{overrides[0]} overrides a field of --config=FILE, and there is none")
        return None
    return settings.read_section(settings.load_config(config, overrides), "build")

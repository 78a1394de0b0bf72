"""`iterpref build`: histories or preference pairs -> records."""

from __future__ import annotations

from collections.abc import Sequence

from iterpref_jax import settings
from iterpref_jax.cli import options
from iterpref_jax.data.build import build
from iterpref_jax.progress import say


def main(argv: Sequence[str]) -> None:
    arguments = options.parser("build", __doc__)
    options.add_config(arguments)
    arguments.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="FILE",
        help="trajectories (JSONL) or preference pairs (JSON, JSONL, Parquet); may be given again",
    )
    arguments.add_argument("--out", required=True, metavar="DIR", help="the dataset folder to write")
    chosen, config = options.parse_with_config(arguments, argv)
    report = build(chosen.input, chosen.out, settings.read_section(config, "build"))
    kept = " + ".join(f"{pairs} {split}" for split, pairs in report.pairs.items())
    dropped = ", ".join(f"{rule} {count}" for rule, count in report.dropped.items() if count) or "none"
    say(f"pairs: {kept}; dropped: {dropped}")

"""`iterpref compare`: runs of `iterpref eval` side by side; each is compared with the first one."""

from __future__ import annotations

from collections.abc import Sequence

from iterpref_jax.cli import options
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import comparison, eval_page
from iterpref_jax.progress import say


def main(argv: Sequence[str]) -> None:
    arguments = options.parser("compare", __doc__)
    arguments.add_argument("runs", nargs="+", metavar="RUN", help="folders that `iterpref eval` wrote, two or more")
    arguments.add_argument("--out", default="", metavar="DIR", help="write comparison.md and comparison.html there")
    chosen, overrides = options.parse(arguments, argv)
    if overrides:
        raise UserError(f"--config.{overrides[0]}: this command reads no config")
    if len(chosen.runs) < 2:
        raise UserError(f"one run alone, {chosen.runs[0]}, has nothing to be compared with: name two or more")
    found = comparison.compare(chosen.runs)
    for line in comparison.lines(found):
        say(line)
    if chosen.out:
        folder = options.local_path(chosen.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "comparison.md").write_text(comparison.markdown(found), encoding="utf-8")
        (folder / "comparison.html").write_text(eval_page.comparison_page(found), encoding="utf-8")
        say(f"comparison: {folder / 'comparison.html'}")

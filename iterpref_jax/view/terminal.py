"""Pairs on a terminal: code side by side where there is room, focus in colour and with `-` and `+` in the margin."""

from __future__ import annotations

from collections.abc import Iterator

import rich.console
import rich.rule
import rich.table
import rich.text

from iterpref_jax.view import model as view
from iterpref_jax.view import source as view_source
from iterpref_jax.view import text as view_text
from iterpref_jax.view import tree as view_tree

# Two columns of code with margins; below it lines of ordinary length would be folded.
SIDE_BY_SIDE_FROM = 150
PROMPT_CHARACTERS = 300
STYLES = {"chosen": "#ffffff on #1d4d2b", "rejected": "#ffffff on #6e1f24"}
MARGINS = {"chosen": "+", "rejected": "-"}
ANCHOR = "^"
HEADS = {"chosen": "bold green", "rejected": "bold red"}


def paint(shown: view_source.Shown, console: rich.console.Console) -> None:
    """Prints the pairs; lines are folded on a terminal only, for `grep` and `diff` need them whole."""
    _print(console, f"{shown.source}: {shown.about}, recipe {shown.recipe}")
    if shown.summary is not None:
        _print(console, _summary(shown.summary))
    for number, pair in enumerate(shown.pairs, start=1):
        _pair(pair, f"{number} of {len(shown.pairs)}", console)
    if len(shown.pairs) < shown.total:
        _print(console, f"\n{len(shown.pairs)} of {shown.total} pairs; more with --limit=N, others with --pair=ID")


def _summary(summary: view_tree.Summary) -> str:
    whole, focal = summary.tokens[view_tree.NAMES[0]], summary.tokens[view_tree.FOCAL]
    grouped = summary.tokens.get(view_tree.GROUP)
    trees = f"at most {grouped} as {view_tree.GROUP} ({view.factor(whole, grouped):.2f}x); " if grouped else ""
    return (
        f"{summary.pairs} pair{'s' * (summary.pairs != 1)}: {whole} tokens as separate sequences, {focal} as "
        f"{view_tree.FOCAL} ({view.factor(whole, focal):.2f}x fewer; mean of the pairs {summary.mean_saving:.2f}x), "
        f"{trees}{summary.targets} log-probs"
    )


def _pair(pair: view.PairView, place: str, console: rich.console.Console) -> None:
    console.print()
    console.print(rich.rule.Rule(_plain(f"{pair.pair_id}  ({place})"), align="left", style="dim"))
    for line in _facts(pair):
        _print(console, line)
    console.print()
    if console.width >= SIDE_BY_SIDE_FROM:
        console.print(_side_by_side(pair))
    else:
        for side in pair.sides:
            _print(console, _head(side))
            for line in side.lines:
                _print(console, _line(line, side))


def _facts(pair: view.PairView) -> Iterator[str]:
    yield f"task    {pair.task}"
    if pair.dropped:
        yield f"dropped `iterpref build` leaves this pair out: {pair.dropped}"
    yield f"prompt  {view_text.shortened(pair.prompt, PROMPT_CHARACTERS)}"
    if pair.tokens is None:
        return
    yield (
        f"tokens  prompt {len(pair.tokens.example.prompt_ids)}, common prefix of the completions "
        f"{pair.tokens.common_tokens}, log-probs {pair.tokens.pictures[-1].targets}"
    )
    for picture in (*pair.tokens.pictures, *filter(None, [pair.tokens.group])):
        times = view.factor(picture.whole, picture.tokens)
        of_pairs = f"  ({picture.pairs} pairs with this chosen side)" if picture.pairs > 1 else ""
        fewer = f"  {times:.2f}x fewer" if times != 1 else ""
        yield f"        {picture.name:<18}{picture.tokens:>7}{fewer}{of_pairs}"


def _head(side: view.Completion) -> rich.text.Text:
    counts = (
        f"{len(side.tokens)} tokens, {side.focus_tokens} in focus" if side.tokens else f"{len(side.text)} characters"
    )
    return rich.text.Text.assemble((side.name, HEADS[side.name]), f"  {counts}")


def _side_by_side(pair: view.PairView) -> rich.table.Table:
    table = rich.table.Table.grid(expand=True, padding=(0, 1))
    table.add_column(ratio=1, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    table.add_row(*map(_head, pair.sides))
    for row in pair.rows:
        table.add_row(*("" if line is None else _line(line, side) for line, side in zip(row, pair.sides, strict=True)))
    return table


def _line(line: view_text.Line, side: view.Completion) -> rich.text.Text:
    margin = MARGINS[side.name] if line.is_focus else ANCHOR if line.has_anchor else " "
    text = rich.text.Text(f"{margin} {'' if line.number is None else line.number:>4}  ")
    for run in line.runs:
        for part in run.parts:
            text.append(_shown(part), STYLES[side.name] if part.is_focus else _token_style(run, side))
    return text


def _token_style(run: view_text.Run, side: view.Completion) -> str:
    token = None if run.token is None else side.tokens[run.token]
    return "" if token is None else "underline" if token.is_anchor else "dim" if token.is_left_out else ""


def _shown(part: view_text.Part) -> str:
    if part.kind in ("newline", "bytes"):
        return ""
    # A tab keeps its width of a few columns; the sign alone would pull the code to the left.
    return "⇥   " * len(part.text) if part.kind == "tab" else view_text.mark(part)


def _print(console: rich.console.Console, text: str | rich.text.Text) -> None:
    console.print(_plain(text) if isinstance(text, str) else text, soft_wrap=not console.is_terminal)


def _plain(text: str) -> rich.text.Text:
    """The text as it is: names come from data, and `[x]` in them is no markup."""
    return rich.text.Text("".join(char if char.isprintable() or char == "\n" else "�" for char in text))

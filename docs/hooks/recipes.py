"""MkDocs hook: the table of recipes with their costs, read from the docstrings of configs/*.py at every build."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

PAGE, MARK = "recipes.md", "<!-- the table of recipes -->"
PLAN = re.compile(
    r"Plan \(`iterpref plan --config=\.\.\. --topology=(?P<topology>\S+)`, (?P<chips>\d+) chips?; [^)]*\): "
    r"(?P<used>[\d.]+) of (?P<limit>[\d.]+) GiB a chip, (?P<rows>\d+ x \d+) rows an update of (?P<pairs>\d+) pairs; "
    r"at assumed speeds (?P<seconds>[\d.]+) s an update and (?P<hours>[\d.]+) chip hours an epoch of 100,000 pairs"
)
# Paragraphs, and the line "Expected ...", which follows the plan without an empty line.
PARTS = re.compile(r"\n\n|\n(?=Expected)")
NOTHING = re.compile(r"no result of ours yet")
HEAD = "| recipe | planned for | GiB a chip | s an update | chip hours an epoch |\n|---|---|---|---|---|\n"


class Recipe(NamedTuple):
    """One config file: what its docstring says."""

    file: str
    what: str
    plan: dict[str, str]
    expected: str

    def row(self) -> str:
        plan = self.plan
        name = [f"{self.what}<br>[{self.file}](../{self.file})"]
        name += [f"expected {self.expected}"] if self.expected else []
        cells = (
            "<br>".join(name),
            f"`{plan['topology']}`",
            f"{plan['used']} of {plan['limit']}",
            plan["seconds"],
            plan["hours"],
        )
        return f"| {' | '.join(cells)} |"


def read_recipe(path: Path) -> Recipe | None:
    """Returns what a config's docstring says, or None for one without a plan (base, demo)."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    plan = PLAN.search(" ".join(text.split()))
    if plan is None:
        if "Plan (" in text:
            raise ValueError(f"{path}: the paragraph that begins with `Plan (` is not as those of the other configs")
        return None
    expected = next((part.removeprefix("Expected") for part in PARTS.split(text) if part.startswith("Expected")), "")
    expected = " ".join(expected.split()).strip(":. ")
    return Recipe(f"configs/{path.name}", paragraphs[0].rstrip("."), plan.groupdict(), NOTHING.sub("", expected))


def table(folder: Path) -> str:
    """Returns the table of all recipes in a folder of configs, the cheapest first."""
    found = [recipe for path in sorted(folder.glob("*.py")) if (recipe := read_recipe(path))]
    found.sort(key=lambda recipe: float(recipe.plan["hours"]))
    return HEAD + "\n".join(recipe.row() for recipe in found)


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri != PAGE:
        return markdown
    if MARK not in markdown:
        raise ValueError(f"{PAGE} lacks the line {MARK}, which the table of recipes takes the place of")
    return markdown.replace(MARK, table(Path(config.config_file_path).parent / "configs"))

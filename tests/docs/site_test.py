"""The site is built as strictly as MkDocs can: every page has a place, every link and anchor leads somewhere."""

import ast
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("material", reason="needs mkdocs-material: pip install 'iterpref_jax[docs]'")

from tests.docs.pages import DOCS, ROOT, blocks


def build(folder: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--config-file={folder}/mkdocs.yml"]
    return subprocess.run(
        [*command, f"--site-dir={out}"], capture_output=True, text=True, check=False, cwd=folder, timeout=120
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    ended = build(ROOT, out)
    assert ended.returncode == 0, ended.stderr
    return out


@pytest.fixture
def checkout(tmp_path):
    """A copy of all that the site is made of, small enough to be changed and built again."""
    kept = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("docs", "configs", "iterpref_jax", "tests", "benchmarks", "launch"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=kept)
    for path in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml"):
        shutil.copy(path, tmp_path)
    return tmp_path


class Resources(HTMLParser):
    """Collects what a page loads when it is opened."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("script", "img", "iframe") and values.get("src"):
            self.found.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preconnect", "icon"):
            self.found.append(values["href"])


def test_the_site_builds_without_a_warning(site):
    assert (site / "index.html").is_file()
    assert (site / "troubleshooting" / "index.html").is_file()


def test_pages_load_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        resources = Resources()
        resources.feed(page.read_text(encoding="utf-8"))
        assert resources.found
        assert not [source for source in resources.found if re.match(r"https?:|//", source)], page


def test_a_file_that_a_page_links_to_is_a_page_with_its_text(site):
    text = (site / "repository" / "iterpref_jax" / "objectives" / "links.py" / "index.html").read_text()
    assert "sigmoid_norm" in text
    assert 'href="../repository/iterpref_jax/objectives/links.py/"' in (site / "method" / "index.html").read_text()


def test_drawings_are_part_of_their_page(site):
    assert '<svg class="fig"' in (site / "focal_compute" / "index.html").read_text()


@pytest.mark.parametrize(
    ("page", "text", "message"),
    [
        ("docs/start.md", "[x](nowhere.md)", "nowhere.md"),
        ("docs/start.md", "[x](data.md#no-such-heading)", "no-such-heading"),
        ("docs/start.md", "[x](../configs/no_such_config.py)", "no_such_config.py"),
        ("docs/start.md", "[x](../no_such_folder/)", "no_such_folder"),
        ("README.md", "[x](docs/gone.md)", "docs/gone.md"),
        ("docs/forgotten.md", "# A page that the navigation lacks", "forgotten.md"),
    ],
)
@pytest.mark.slow
def test_a_broken_link_or_a_page_without_a_place_fails_the_build(page, text, message, checkout, tmp_path):
    with (checkout / page).open("a") as file:
        file.write(f"\n{text}\n")
    ended = build(checkout, tmp_path / "out")
    assert ended.returncode != 0
    assert message in ended.stderr


def recipes_of(folder: Path) -> set[str]:
    """The configs whose docstring holds a plan."""
    docs = {path.name: ast.get_docstring(ast.parse(path.read_text())) or "" for path in folder.glob("*.py")}
    return {name for name, text in docs.items() if "Plan (" in text}


def test_every_recipe_stands_in_the_table_with_its_chip_hours(site):
    text = (site / "recipes" / "index.html").read_text()
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    found = {name[1] for row in rows if (name := re.search(r">configs/(\w+\.py)</a>", row))}
    assert found == recipes_of(ROOT / "configs")
    (row,) = [row for row in rows if ">configs/target_rpo_qwen2_5_coder_32b.py</a>" in row]
    cells = re.findall(r"<td>(.*?)</td>", row, re.DOTALL)
    assert cells[1:] == ["<code>v5p:2x2x4</code>", "37.5 of 95.73", "8.2", "28.6"]


def test_every_recipe_and_link_is_on_the_page_of_the_method():
    from iterpref_jax.objectives.links import LINKS
    from iterpref_jax.objectives.weights import RECIPES

    text = (DOCS / "method.md").read_text()
    assert {name for name in (*RECIPES, *LINKS) if f"`{name}`" not in text} == set()


def test_a_page_of_the_site_says_of_every_block_what_it_is():
    fences = {block.language for page in DOCS.glob("*.md") for block in blocks(page.read_text())}
    assert fences <= {"bash", "json", "python", "text", "yaml"}

"""MkDocs hook: files of the repository that pages link to become pages of the site, so that every link is checked.

A page of docs/ links to `../CONTRIBUTING.md` or `../configs/base.py`, as the repository lies on the disk. Here such a
file becomes `repository/CONTRIBUTING.md` or `repository/configs/base.py.md` (source text), and the link goes there; a
folder becomes the list of its files.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File, InclusionLevel

FOLDER = "repository"
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?P<rest>(?:#[^)\s]*)?)(?=\))")
HEAD = "---\nsearch:\n  exclude: true\n---\n# {name}\n\n"
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".toml": "toml", ".json": "json"}


def on_files(files, config):
    root = Path(config.config_file_path).parent
    inside = Path(config.docs_dir)
    listed = [path for pattern in config.extra.get("repository_files", ()) for path in root.glob(pattern)]
    for path in sorted(linked(inside, root, [*listed, *(root / name for name in named(config.nav))])):
        place, text = address(path, root, inside), content(path, root)
        files.append(File.generated(config, place, content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown, page, config, files):
    root, inside = Path(config.config_file_path).parent, Path(config.docs_dir)
    origin = file_of(page.file.src_uri, root, inside)
    if origin.suffix != ".md":
        return markdown
    here = PurePosixPath(page.file.src_uri).parent

    def moved(link: re.Match) -> str:
        target = (origin.parent / link["path"]).resolve()
        # What is not there stays as it is: MkDocs then names the page and the link.
        if not target.exists() or root not in target.parents:
            return link[0]
        return os.path.relpath(address(target, root, inside), here) + link["rest"]

    return LINK.sub(moved, markdown)


def content(path: Path, root: Path) -> str:
    """Returns the Markdown of a file of the repository, or of a folder."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    head = HEAD.format(name=path.relative_to(root).as_posix())
    if path.is_dir():
        return head + "\n".join(f"- [{file.name}]({path.name}/{file.name}.md)" for file in sources(path)) + "\n"
    return f"{head}`````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8')}\n`````\n"


def sources(folder: Path) -> list[Path]:
    """Returns the files that the page of a folder lists."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in LANGUAGES)


def address(path: Path, root: Path, inside: Path) -> str:
    """Returns where a file of the repository lies in the site's sources."""
    if path.is_relative_to(inside):
        return path.relative_to(inside).as_posix()
    return f"{FOLDER}/{path.relative_to(root).as_posix()}" + ("" if path.suffix == ".md" else ".md")


def file_of(src_uri: str, root: Path, inside: Path) -> Path:
    """Returns the file that a page was made from: the inverse of `address`."""
    if not src_uri.startswith(f"{FOLDER}/"):
        return inside / src_uri
    path = root / src_uri.removeprefix(f"{FOLDER}/")
    return path if path.exists() else path.with_name(path.name.removesuffix(".md"))


def named(nav: list | dict | str | None) -> Iterator[str]:
    """Yields the files of the repository that the navigation names, from the repository's root."""
    if isinstance(nav, str):
        if nav.startswith(f"{FOLDER}/"):
            yield nav.removeprefix(f"{FOLDER}/")
    else:
        for part in nav.values() if isinstance(nav, dict) else nav or ():
            yield from named(part)


def linked(inside: Path, root: Path, listed: list[Path]) -> set[Path]:
    """Returns the files outside of docs/ that are listed or that pages link to, also by way of each other."""
    found: set[Path] = set()
    waiting = [*inside.rglob("*.md"), *listed]
    while waiting:
        path = waiting.pop()
        if path in found or not path.exists() or root not in path.parents:
            continue
        if not path.is_relative_to(inside):
            found.add(path)
        if path.is_dir():
            waiting += sources(path)
        elif path.suffix == ".md":
            links = LINK.finditer(path.read_text(encoding="utf-8"))
            targets = ((path.parent / link["path"]).resolve() for link in links)
            waiting += [target for target in targets if not target.is_relative_to(inside)]
    return found

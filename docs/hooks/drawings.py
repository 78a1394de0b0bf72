"""MkDocs hook: drawings (`![...](figures/NAME.svg)`) go into the page itself, so that they follow its colours."""

import html
import re
from pathlib import Path

DRAWING = re.compile(r"^!\[(?P<text>[^]]*)\]\((?P<path>figures/\w+\.svg)\)$", re.MULTILINE)


def on_page_markdown(markdown, page, config, files):
    def drawn(image: re.Match) -> str:
        path = Path(config.docs_dir, image["path"])
        # What is no file stays as it is: MkDocs then names the page and the link.
        if not path.is_file():
            return image[0]
        label = html.escape(image["text"])
        drawing = path.read_text(encoding="utf-8").strip()
        return f'<figure class="drawing" role="img" aria-label="{label}">\n{drawing}\n</figure>'

    return DRAWING.sub(drawn, markdown)

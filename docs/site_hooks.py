"""MkDocs hooks: pages of the site that lie outside docs/."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
"""Pages of the repository's root, and their names on the site."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the root."""
    for name, page in PAGES.items():
        content = with_site_links((ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turns links of pages in docs/ to pages of the root into links of the site."""
    for name, page in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({page}")
    return markdown


def with_site_links(markdown: str) -> str:
    """Turns links of a page of the root into links of the site."""
    for name, page in PAGES.items():
        markdown = markdown.replace(f"]({name}", f"]({page}")
    return re.sub(r'(\]\(|src=")docs/', r"\1", markdown)

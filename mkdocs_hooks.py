"""Adapts the manuals, which are read in the repository too, to the site that ``make docs`` builds."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:meth|func|class|data|attr|mod):<code>~?([^<]*)</code>")
"""A reference of a docstring, whose role Markdown does not know."""


def on_config(config: Any) -> Any:
    """Has headings named in addresses as the repository's own pages name them."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leaves out what leads out of the site: README.md has its counterpart in index.md."""
    return re.sub(r"\]\((?:\.\./)+README\.md\)", "](index.md)", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Shows references of docstrings as code."""
    return ROLE.sub(r"<code>\1</code>", html)


def slug(heading: str, _separator: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")

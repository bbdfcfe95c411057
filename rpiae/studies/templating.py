"""Templates of a study's report, in which nothing that a study holds is markup."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

#: Characters that begin something within a line of Markdown, and what GitHub makes links of.
_ACTIVE = re.compile(r"[\\`*_|~!$@#]|\](?=[\[(:])|:(?=//)|(?<=www)\.", re.IGNORECASE)

#: What makes a heading, a list or a line at the beginning of a line.
_LEADING = re.compile(r"^(\d*)([-+=]+(?=\s|$)|[.)](?=\s|$)|\[)")


def render(name: str, values: Mapping[str, Any]) -> str:
    """A page from its template; what is printed in it is escaped by the kind of the page.

    Args:
        name: of a file in ``templates/``: ``.html``, or ``.md`` for GitHub's Markdown.
        values: by name. Only ``markupsafe.Markup`` among them is printed as it is.
    """
    escape = {"html": html_text, "md": markdown_text}[name.rpartition(".")[2]]
    return _environment(escape).get_template(name).render(values)


@functools.cache
def _environment(escape: Callable[[str], str]) -> Environment:
    import jinja2
    from markupsafe import Markup

    def finalize(value: Any) -> Markup:
        return value if isinstance(value, Markup) else Markup(escape(str(value)))

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rpiae.studies"), undefined=jinja2.StrictUndefined,
        autoescape=True, finalize=finalize, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["within"] = lambda text: Markup(markdown_within(text))
    environment.filters["fenced"] = lambda text: Markup(fenced(text))
    return environment


def clean(text: str) -> str:
    """Text without the characters that no page or file may hold."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def html_text(text: str) -> str:
    """Text for HTML, in attributes too."""
    return html.escape(clean(text))


def markdown_text(text: str) -> str:
    """Text on one line of Markdown: nothing in it makes a heading, a list or a link's address."""
    return _LEADING.sub(r"\1\\\2", markdown_within(text))


def markdown_within(text: str) -> str:
    """Text within a line, with nothing in it that Markdown or HTML would take for its own: emphasis,
    code, cells, links (and what GitHub makes one of by itself), tags, formulas."""
    text = _ACTIVE.sub(r"\\\g<0>", clean(" ".join(text.split())))
    return html.escape(text, quote=False)


def fenced(text: str) -> str:
    """Text as it is, in a block of code; the fence is longer than any in it."""
    text, fence = clean(text), "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.rstrip()}\n{fence}"

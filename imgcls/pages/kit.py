"""Make a page: a template, its values, and the policy that keeps the page from doing anything else.

In: a Page: parts of templates/parts/ and plain values. Out: one HTML file. Invariants: the browser
fetches nothing and runs nothing but the one style and the one script of the kit, whose hashes the
page's policy names; every value is escaped, so that names of files, classes and patients are text.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from imgcls.inert import in_log

# The templates' own folder; what a page may be is decided there.
_TEMPLATES: Final = files("imgcls.pages") / "templates"
_DIGITS_OF_A_PERCENTAGE: Final = 1


@dataclass(frozen=True, slots=True)
class Part:
    """One section of a page: a template of templates/parts/, and what it shows."""

    name: str
    """Of the place in the page: letters and dashes."""
    title: str
    template: str
    values: Any
    """For the template, as `part.values`; a text is shown as it is, whatever is in it."""

    @property
    def count(self) -> int | None:
        """How many things it shows, where it says so: behind the title, where the page begins."""
        return getattr(self.values, "num_all", None)


@dataclass(frozen=True, slots=True)
class Page:
    """A page from top to bottom."""

    title: str
    above: str
    """The line above the headline."""
    headline: str
    parts: Sequence[Part]
    remarks: Sequence[str] = ()
    below: str = ""
    """The last line."""
    is_medical: bool = False
    """Whether it shows patients' pictures, and says so on top."""
    version: str = field(default_factory=lambda: version("imgcls"))


def render(page: Page) -> str:
    """Return a page as HTML."""
    style, script = _read("style.css"), _read("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    # Style and script are not escaped, and part of the kit: the browser compares their hashes.
    html: str = (
        _environment()
        .get_template("page.html")
        .render(style=Markup(style), script=Markup(script), policy=policy, page=page)  # noqa: S704
    )
    return html


def data_uri(data: bytes, kind: str) -> str:
    """Return a picture as a page holds it, `kind` its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def link_of(uri: str) -> str:
    """Return where a name may lead: the URI itself of a web server without a query, else ""."""
    is_web = uri.startswith(("https://", "http://"))
    return uri if is_web and not set("?#\\\"'<> ") & set(uri) and "@" not in uri else ""


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("imgcls.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inert": in_log, "count": _count, "share": _share, "probability": _prob}
    return environment


def _count(number: int) -> str:
    return f"{number:,}"


def _share(part: float, whole: float) -> str:
    """Return a share of something as a percentage, "" of nothing."""
    return f"{100 * part / whole:.{_DIGITS_OF_A_PERCENTAGE}f} %" if whole else ""


def _prob(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"

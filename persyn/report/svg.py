"""A matplotlib figure as an element of the page: the page's colours and font, unique ids, equal bytes each time."""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from persyn.errors import printable

INK, MUTED, RULE, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
"""Placeholders for the page's own colours."""
THEME = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a8a", "#e8d83a"]
"""Okabe and Ito's palette for the colour-blind, with grey instead of black, which is the colour of text."""
STRATEGY_COLOURS = ["#18202b", "#aa3377", "#228833", "#4477aa", "#ccbb44", "#66ccee", "#ee6677", "#999999"]
"""Black, then Tol's palette: a strategy must not look like a teacher."""
HATCHES, MARKERS, LINES = ["", "/////", "|||||", "xxxxx"], ["o", "s", "^", "D"], ["-", "--", ":", "-."]
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "hatch.color": PAPER,
    "hatch.linewidth": 1.2,
    "lines.linewidth": 1.8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Look:
    """How one name is drawn in every chart: 8 colours, each plain, hatched, striped and crossed."""

    number: int
    colours: tuple[str, ...] = tuple(COLOURS)

    @property
    def colour(self) -> str:
        return self.colours[self.number % len(self.colours)]

    @property
    def turn(self) -> int:
        """How many times all colours have been used before, 0 to 3."""
        return self.number // len(self.colours) % len(HATCHES)

    @property
    def hatch(self) -> str:
        return HATCHES[self.turn]

    @property
    def marker(self) -> str:
        return MARKERS[self.turn]

    @property
    def line(self) -> str:
        return LINES[self.turn]


def looks(names: Iterable[str], colours: Sequence[str] = COLOURS) -> dict[str, Look]:
    """name -> its look, by its position."""
    return {name: Look(number, tuple(colours)) for number, name in enumerate(dict.fromkeys(names))}


def short(name: object, length: int = 40) -> str:
    """A name as a label: on one line, shortened in the middle if it is long."""
    text = printable(str(name))
    return text if len(text) <= length else f"{text[: length - 12]}…{text[-11:]}"


def render(name: str, title: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> Markup:
    """Draw a figure.

    Args:
        name: unique on the page, letters and digits; the figure's ids begin with it.
        title: the content in words, for readers who cannot see it.
        size: width and height in pixels of the page.
        paint: draws it.

    Returns:
        An svg element.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has its own font
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)  # type: ignore[arg-type]
        mpl.rcParams["svg.hashsalt"] = name
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        paint(figure)
        out = io.BytesIO()
        figure.savefig(out, format="svg")
    return _inline(out.getvalue(), name, title, size[0])


def _inline(svg: bytes, name: str, title: str, width: float) -> Markup:
    """Matplotlib's svg without what a page must not repeat: prologue, metadata, style, comments, unused ids."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {
        found for value in values for found in re.findall(r"^#([\w-]+)$|url\(#([\w-]+)\)", value) for found in found
    }
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        element.tail = None
        if element.tag != "text":
            element.text = None
        fields = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if fields.get("id") not in used:
            fields.pop("id", None)
        element.attrib.clear()
        element.attrib.update({key: _own(key, value, name) for key, value in fields.items()})
    height = root.attrib["viewBox"].split()[3]
    root.attrib.clear()
    root.attrib |= {
        "class": "plot wide" if width > 600 else "plot",
        "viewBox": f"0 0 {width:g} {height}",
        "role": "img",
        "aria-label": printable(title),
    }
    root.set("style", f"max-width:{width:g}px")
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # it escapes


def _own(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-")
    value = value.replace("url(#", f"url(#{name}-")
    if key == "style":
        value = re.sub(r"font-family: [^;]*(; )?", "", re.sub(r"font: ([^;]*?)([\d.]+px)[^;]*", _font, value))
        for token, variable in THEME.items():
            value = value.replace(token, variable)
    return value


def _font(found: re.Match[str]) -> str:
    """Keep size and weight; the page gives the family."""
    weight = re.search(r"\b[1-9]00\b|bold", found[1])
    return f"font-size: {found[2]}" + (f"; font-weight: {weight[0]}" if weight else "")

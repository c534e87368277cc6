"""Terminal: shows data safely: it is never read as markup, and its control characters are escaped."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from persyn.errors import printable


def shown(value: object, style: str = "") -> Text:
    """Data as rich text: newlines stay, other control characters are escaped; None is `-`."""
    if isinstance(value, Text):
        return value
    text = "-" if value is None else number(value) if isinstance(value, float) else str(value)
    return Text(printable(text, keep="\n"), style=style)


def number(value: float, sign: str = "") -> str:
    """Four significant digits; `sign` as in format()."""
    return f"{value:{sign}z.4g}" if value or not sign else "0"


def first_words(text: str, width: int = 60) -> str:
    """The beginning of `text`, on one line, `width` characters at most."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def rows_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Iterable[str] = ()) -> Group:
    """A table of data below its title. (rich would wrap a title of its own to the table's width.)

    Args:
        columns: their names.
        right: the columns of numbers, aligned to the right.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        narrow = 16 if column == "prompt_id" else None
        table.add_column(
            shown(column), justify="right" if column in right else "left", overflow="fold", min_width=narrow
        )
    for row in rows:
        table.add_row(*map(shown, row))
    return Group(shown(f"\n{title}", "bold"), table)


def plain(*parts: RenderableType, width: int = 1000) -> str:
    """Text without colours; only lines longer than `width` are broken, and none ends in spaces."""
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines())

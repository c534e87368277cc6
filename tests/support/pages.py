"""Pages: reads blocks, commands and links of the documentation and tables of a report; runs blocks in a project."""

import html
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from ruamel.yaml import YAML

from persyn.files import cache_folder
from persyn.models.packaged import PACKAGED
from tests.support.tiny import CHATML, ROOT, build_model, tiny_project

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
NOT_RUN = "not-run:"
"""Starts the info string of a block that cannot be run here, with the reason: ```sh not-run: needs a GPU"""


@dataclass(frozen=True)
class Block:
    """A fenced block. `info`, after its language, is empty, the reason not to run it, or the name of its file."""

    page: Path
    line: int
    language: str
    info: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        return not self.info.startswith(NOT_RUN)

    @property
    def commands(self) -> list[list[str]]:
        """The words of its commands, without comments and redirections."""
        joined = self.text.replace("\\\n", " ")
        lines = [part for line in joined.splitlines() for part in line.split(" && ")]
        return [words for line in lines if (words := split(line))]


def split(line: str) -> list[str]:
    """The words of a command as a shell reads them, up to a pipe or a redirection, without leading assignments."""
    words = shlex.split(line, comments=True)
    end = next((number for number, word in enumerate(words) if re.fullmatch(r"\||\d?>>?", word)), len(words))
    start = next((number for number, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), end)
    return words[start:end]


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, those in lists too."""
    found = []
    for token in tokens(page):
        if token.type == "fence":
            language, _, info = token.info.partition(" ")
            found.append(Block(page, (token.map or [0])[0] + 1, language, info, token.content))
    return found


def inline(page: Path) -> Iterator[Token]:
    for token in tokens(page):
        yield from token.children or []


def inline_commands(page: Path) -> list[list[str]]:
    """Commands in running text: inline code that starts like one of ours."""
    found = [token.content for token in inline(page) if token.type == "code_inline"]
    return [split(text) for text in found if re.match(r"(persyn|dvc|make|python -m) [a-z]", text)]


def links(page: Path) -> list[str]:
    """The targets of its links and images."""
    found = [token for token in inline(page) if token.type in ("link_open", "image")]
    return [str(token.attrGet("href") or token.attrGet("src")) for token in found]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes for its headings."""
    found = tokens(page)
    texts = [found[number + 1].content for number, token in enumerate(found) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


class Workplace:
    """A clone of this project, its packaged models replaced by tiny random ones, and a shell in it."""

    def __init__(self, folder: Path) -> None:
        self.home, self.root = folder / "home", folder / "persyn"
        self.home.mkdir(parents=True)
        params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
        tiny_project(self.root, params)
        shutil.copytree(
            ROOT / ".dvc", self.root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local")
        )
        for name in ("params.yaml", "Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        shutil.copytree(ROOT / "requirements", self.root / "requirements")
        for name, packaged in PACKAGED.items():
            template = CHATML if "instruct" in name else None
            build_model(cache_folder() / "models" / f"{name}-{packaged.sha256[:12]}", chat_template=template)
        (self.root / ".venv/bin").mkdir(parents=True)  # `make setup` has nothing left to do: CI does it
        for name in ("bin/activate", ".installed"):
            (self.root / ".venv" / name).touch()
        self.folder = self.root
        self.shell("git init -q -b main && git add -A && git commit -q -m project", "the project")

    def shell(self, text: str, name: str) -> str:
        """Run a script in the folder where the last one ended; returns its output.

        Raises:
            AssertionError: one of its commands failed.
        """
        where = self.home / "where"
        # What CI sets for `make` would set up another environment here, which takes minutes.
        ours = {name: value for name, value in os.environ.items() if name not in ("VENV", "EXTRAS")}
        environment = {
            **ours,
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root),
            **{f"GIT_{who}_{what}": "docs@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        script = f"set -euo pipefail\n{text}\npwd > {shlex.quote(str(where))}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{name}\n{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        self.folder = Path(where.read_text().strip())
        return done.stdout + done.stderr

    def write(self, block: Block) -> None:
        """Save a block as the file that it names; in params.yaml, replace only the block's sections."""
        file = self.folder / block.info
        if file.name == "params.yaml":
            yaml = YAML()
            params = yaml.load(file)
            params.update(yaml.load(block.text))
            yaml.dump(params, file)
        else:
            file.write_text(block.text)


def tables(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(first word of the header, first cells of the rows, as markdown) of each table."""
    header, rows, cells = "", list[str](), list[str]()
    for token in tokens(page):
        if token.type == "table_open":
            header, rows = "", []
        elif token.type == "tr_open":
            cells = []
        elif token.type == "inline":
            cells.append(token.content)
        elif token.type == "tr_close" and not header:
            header = cells[0]
        elif token.type == "tr_close":
            rows.append(cells[0])
        elif token.type == "table_close":
            yield header, rows


def code_spans(markdown: str) -> list[str]:
    return re.findall(r"`([^`]+)`", markdown)


def rows(page: str) -> list[list[str]]:
    """The cells of every row of every table of an HTML page."""
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    ]

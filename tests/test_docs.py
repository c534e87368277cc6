"""The documentation is true: its commands run, here or in CI, or are marked and parse; its links lead somewhere; the
code of its how-tos works; the messages it explains are those of the code.
"""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from dvc.cli import parse_args
from ruamel.yaml import YAML
from typer.main import get_command

from persyn.cli import app
from tests.support.chromium import missing
from tests.support.pages import PAGES, Workplace, anchors, blocks, code_spans, inline_commands, links, tables
from tests.support.tiny import ROOT, tiny_project

DOCS = ROOT / "docs"
CI = (ROOT / ".ci/run").read_text()
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [block for block in BLOCKS if block.language == "sh"]
FREE = {"cd", "curl", "docker", "export", "git", "pip", "python", "ssh", "vllm", "hf", "tail", "tensorboard"}
"""Programs that are not ours: what a block that is not run may start unchecked."""
EXTRAS = {"ray", "vllm"}
"""Packages that need not be installed."""


def is_run_by_ci(words: list[str]) -> bool:
    """`make test`, `make lint`, and `make setup`, on which both depend."""
    return words[:1] == ["make"] and len(words) == 2 and (" ".join(words) in CI.splitlines() or words[1] == "setup")


def test_ci_runs_what_the_pages_leave_to_it() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("test", "lint"):
        assert is_run_by_ci(["make", target])
        assert f"\n{target}: setup\n" in makefile


def check(words: list[str]) -> None:
    """Raise if a command that is not run has an option, a target or a module that does not exist."""
    program, *arguments = words
    if program == "persyn":
        check_persyn(arguments)
    elif program == "dvc":
        parse_args(arguments)
    elif program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
    elif words[:2] == ["python", "-m"] and words[2].partition(".")[0] not in EXTRAS:
        spec = importlib.util.find_spec(f"{words[2]}.__main__") if (ROOT / words[2]).is_dir() else None
        spec = spec or importlib.util.find_spec(words[2])
        assert spec, f"there is no module {words[2]}"
        options = [word.partition("=")[0] for word in words[3:] if word.startswith("--")]
        if (ROOT / words[2].partition(".")[0]).is_dir():
            source = Path(str(spec.origin)).read_text()
            assert not [option for option in options if f'"{option}"' not in source]
    else:
        known = program in FREE or any((folder / program).is_file() for folder in (ROOT / "profiles").iterdir())
        assert known, f"{program}: run it or mark its block"


def check_persyn(arguments: list[str]) -> None:
    command: Any = get_command(app)
    context = command.make_context("persyn", arguments)
    while isinstance(command, typer.core.TyperGroup):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_not_run_exist_with_their_options(page: Path) -> None:
    unrun = [words for block in blocks(page) if block.language == "sh" and not block.is_run for words in block.commands]
    for words in [*unrun, *inline_commands(page)]:
        try:
            check(words)
        except (SystemExit, Exception) as error:  # noqa: BLE001  whatever a parser raises
            pytest.fail(f"{page.name}: {' '.join(words)}: {error!r}")


def test_a_wrong_command_is_found() -> None:
    for wrong in ("persyn plan --prob 8", "persyn plann", "dvc exp run --tmp", "make tset", "python -m science --seed"):
        with pytest.raises((SystemExit, Exception)):
            check(wrong.split())
    with pytest.raises(AssertionError, match="run it or mark its block"):
        check(["rm", "-rf", "data"])


def test_blocks_say_what_they_are() -> None:
    for block in BLOCKS:
        assert block.language in ("", "sh", "yaml", "python", "jsonl"), f"{block}: {block.language}"
        assert block.is_run or block.info.removeprefix("not-run:").strip(), f"{block}: say why"
        assert not (block.language == "" and re.search(r"^(dvc|persyn|make|python) ", block.text, re.M)), f"{block}: sh"


def test_every_command_runs(tmp_path: Path) -> None:
    """The tutorial from its first line to its last, then each block of the other pages in the profile that it has made,
    then the README in the root.
    """
    place = Workplace(tmp_path)
    run_page(place, DOCS / "tutorial.md")
    profile = place.folder
    assert "<html" in (profile / "metrics/reports/report.html").read_text()
    assert place.shell("git status --porcelain", "the tutorial") == "", "it leaves nothing uncommitted"
    shutil.copy(profile / "params.yaml", tmp_path)
    shutil.copytree(profile / "data/raw", tmp_path / "raw")
    for page in PAGES:
        if page.name not in ("tutorial.md", "README.md"):
            run_page(place, page, profile)
    if not missing():
        place.shell(f"python {DOCS}/screenshots.py --project {profile} --out {tmp_path}/images", "make screenshots")
        made = {file.name for file in (tmp_path / "images").iterdir()}
        assert made == {file.name for file in (DOCS / "images").iterdir()}, "every picture of the docs is made so"
    # `make demo` on the tutorial's parameters and prompts: DVC's run cache knows their results.
    shutil.copy(tmp_path / "params.yaml", place.root)
    shutil.rmtree(place.root / "data/raw")
    shutil.copytree(tmp_path / "raw", place.root / "data/raw")
    run_page(place, ROOT / "README.md", place.root)
    assert (place.root / "metrics/reports/comparison.md").is_file()


def run_page(place: Workplace, page: Path, folder: Path | None = None) -> None:
    """Run its commands and code and write its files; each block begins in `folder`, or where the last one ended."""
    for block in blocks(page):
        place.folder = folder or place.folder
        if block.language == "sh" and block.is_run:
            lines = [line for line in block.text.splitlines() if not is_run_by_ci(line.partition("#")[0].split())]
            place.shell("\n".join(lines), str(block))
        elif block.language == "python" and not block.info:
            place.shell(f"python - <<'END'\n{block.text}\nEND", str(block))
        elif block.info and block.is_run and block.language != "python":
            place.write(block)


def test_the_how_tos_code_works(tmp_path: Path) -> None:
    """Each Python block is appended to the file it names, in a copy of the project; then its tests run there."""
    place = tiny_project(tmp_path / "copy", YAML(typ="safe", pure=True).load(ROOT / "params.yaml"))
    for name in ("tests", "benchmarks", "docs", "profiles", "rehearsal", "science"):
        shutil.copytree(ROOT / name, place / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copy(ROOT / "pyproject.toml", place)
    tests: list[str] = []
    for block in blocks(DOCS / "howto.md"):
        if block.language == "python":
            with (place / block.info).open("a") as file:
                file.write(f"\n\n{block.text}")
            tests += re.findall(r"^def (test_\w+)", block.text, re.M)
    assert len(tests) == 3, "strategy, quality, backend"
    files = ["routes", "quality", "generation", "pipeline"]
    chosen = " or ".join([*tests, "rule", "tells_the_truth"])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", chosen, "-rp"]
    done = subprocess.run(
        [*command, *(f"tests/test_{name}.py" for name in files)], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert all(re.search(f"PASSED .*::{name}\n", done.stdout) for name in tests)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        if re.match(r"https?://", target):
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {link}; {sorted(anchors(file))}"


def written(*files: Path) -> str:
    """The texts in Python files, each on a line, what is filled in replaced by a tab."""
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "\t" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[.\d]*[sdf]", "\t", node.value))
    return "\n".join(text.replace("\n", " ") for text in found)


def messages() -> Iterator[tuple[str, str]]:
    """(who says it, message) of every table of the troubleshooting page."""
    for header, rows in tables(DOCS / "troubleshooting.md"):
        yield from ((header, span) for row in rows for span in code_spans(row)[:1])


MESSAGES = list(messages())


@pytest.mark.parametrize(("who", "message"), MESSAGES, ids=[message[:40] for _, message in MESSAGES])
def test_a_message_that_is_explained_is_one_of_the_code(who: str, message: str) -> None:
    if who == "it says":
        files = [*ROOT.glob("persyn/**/*.py"), *ROOT.glob("stages/*.py")]
    else:
        specs = [importlib.util.find_spec(name) for name in ("dvc.utils.strictyaml", "dvc.rwlock", "dvc_data.fs")]
        files = [Path(str(spec.origin)) for spec in specs if spec]
    pattern = r"[^\n]*".join(re.escape(part.strip()) for part in message.split("..."))
    assert re.search(pattern, written(*files)), message


def test_the_page_explains_enough() -> None:
    assert len(MESSAGES) > 40


def test_citation_is_complete() -> None:
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "references"} <= citation.keys()
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in pyproject
    assert f'license = "{citation["license"]}"' in pyproject
    [paper] = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2510.10925"
    assert len(paper["authors"]) == 11
    assert "END OF TERMS AND CONDITIONS" in (ROOT / "LICENSE").read_text()

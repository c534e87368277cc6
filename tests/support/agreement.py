"""How far our reading of answers agrees with our own table of cases, and with another project's test cases.

    python -m tests.support.agreement [FOLDER]

The folder holds test files whose `parametrize` lists have columns `gold`, `pred` and `expected` (or `result`), such as
math-verify's `tests/`. One line is printed for each kind or test function: its cases, how many agree as they are scored
here, and how many agree where a case's own settings of math-verify (`strict`, `precision`, ...) are followed.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from persyn.verifiers.answers import read_reference, read_response, same
from tests.support.answers import CASES

SETTINGS = {"precision": "float_rounding", "strict": "strict", "allow_set_relation_comp": "allow_set_relation_comp"}
"""A column of a case -> the setting of math-verify that it gives."""


def cases(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of the test and a case of it, for all lists of literals."""
    for node in ast.parse(file.read_text()).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.parametrize":
                names = [name.strip() for name in ast.literal_eval(call.args[0]).split(",")]
                try:
                    rows = ast.literal_eval(call.args[1])
                except ValueError:  # computed
                    continue
                for row in rows if {"gold", "pred"} < set(names) else ():
                    yield f"{file.stem}.{node.name}", dict(zip(names, row, strict=True))


def agrees(case: dict[str, Any], with_settings: bool) -> bool:
    """Whether we say of a case what it expects."""
    settings = {SETTINGS[name]: case[name] for name in SETTINGS if with_settings and name in case}
    golds = read_reference(case["gold"])
    answers = read_response(case["pred"], any(gold.letter for gold in golds), any(gold.words for gold in golds))
    right = any(same(gold, answer, **settings) for gold in golds for answer in answers)
    return right == bool(case.get("expected", case.get("result")))


def print_agreement(title: str, groups: dict[str, list[dict[str, Any]]]) -> None:
    rows = {name: [(agrees(case, False), agrees(case, True)) for case in part] for name, part in groups.items()}
    rows["all"] = [row for part in rows.values() for row in part]
    typer.echo(f"{title:50} {'cases':>6} {'agree':>6} {'with their settings':>20}")
    for name, part in rows.items():
        typer.echo(f"{name:50} {len(part):6} {sum(plain for plain, _ in part):6} {sum(own for _, own in part):20}")


def main(folder: str | None = None) -> None:
    own = {
        kind: [{"gold": gold, "pred": response, "expected": right} for gold, response, right in part]
        for kind, part in CASES.items()
    }
    print_agreement("our own table", own)
    foreign: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(Path(folder).glob("test_*.py")) if folder else ():
        for name, case in cases(file):
            foreign.setdefault(name, []).append(case)
    if folder:
        print_agreement(f"\n{folder}", foreign)


if __name__ == "__main__":
    main(*sys.argv[1:])

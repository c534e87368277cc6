"""`persyn params`: the reference of params.yaml, and a check of such files."""

from pathlib import Path
from typing import Annotated

import typer


def params(
    section: Annotated[str | None, typer.Argument(help="Print only this section, such as rewards.")] = None,
    check: Annotated[
        list[Path] | None, typer.Option(help="Check this file instead and report every mistake in it. May be repeated.")
    ] = None,
    page: Annotated[bool, typer.Option("--page", help="The reference as docs/params.md.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="The schema for editors, params.schema.json.")] = False,
) -> None:
    """Print every parameter of params.yaml with its type, default and meaning; or check files."""
    from persyn.errors import InputError
    from persyn.evaluation import check_tasks
    from persyn.project.params import read_params
    from persyn.project.reference import reference_page, reference_text, schema_text

    chosen = [bool(section), bool(check), page, schema]
    if sum(chosen) > 1:
        raise InputError("a section, --check, --page and --schema were given together; give one of them")
    mistakes: list[str] = []
    for path in check or []:
        try:
            read = read_params(path)
            check_tasks(path.parent / "tasks", read.evaluation.tasks)
            typer.echo(f"{path}: ok, {len(read.pool)} teachers, {len(read.strategies)} strategies")
            for line in read.told:
                typer.echo(f"{path}: {line}")
        except InputError as error:
            mistakes += error.args
    if mistakes:
        raise InputError(*mistakes)
    if page:
        typer.echo(reference_page(), nl=False)
    elif schema:
        typer.echo(schema_text(), nl=False)
    elif not check:
        typer.echo(reference_text(section))

"""`persyn report`: the project as one html file."""

from pathlib import Path
from typing import Annotated

import typer

from persyn.project import REPORT


def report(
    out: Annotated[Path, typer.Option(help="The file to write.")] = REPORT,
    sample: Annotated[int, typer.Option(min=0, help="At most so many prompts can be browsed on the page.")] = 5000,
    rev: Annotated[str | None, typer.Option(help="A commit, branch, tag or experiment.")] = None,
) -> None:
    """Write one html file: where the prompts went and why, whether it was worth it, and the prompts themselves."""
    from rich.console import Console

    from persyn.errors import InputError, printable
    from persyn.files import write_text
    from persyn.project.experiments import read_experiments
    from persyn.project.snapshot import open_snapshot
    from persyn.report import build_report
    from persyn.report.story import story

    with open_snapshot(rev) as snapshot, Console(stderr=True).status("making the report"):
        experiments, note = read_experiments()
        run = snapshot.replace(experiments=experiments, experiments_note=note)
        page = build_report(run, sample=sample)
    try:
        write_text(page, out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}; choose another --out") from error
    for line in story(run):
        typer.echo(printable(line))
    typer.echo(
        f"Where to look next: {out} ({out.stat().st_size / 1e6:.1f} MB, for any browser), metrics/, "
        "`persyn show`, `persyn ledger`"
    )

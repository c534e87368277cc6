"""`persyn pin`: the commits of hub models and hub data sets."""

from pathlib import Path
from typing import Annotated

import typer


def pin(
    params: Annotated[Path, typer.Option(help="The file to fill in.")] = Path("params.yaml"),
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Replace commits by the newest too. A newer model is another one: it is asked again."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and write nothing.")] = False,
) -> None:
    """Fill in the `revision` of every hub model and hub data set in params.yaml.

    A revision that is null or missing becomes the newest commit on the hub (HF_ENDPOINT, HF_TOKEN); the name of a
    branch or a tag becomes its commit. Comments and layout stay. What was found is written even if others fail.
    """
    from persyn.errors import InputError
    from persyn.project.pins import pin_revisions

    pinned = pin_revisions(params, update, dry_run)
    for line in pinned.changes:
        typer.echo(line)
    done = "would be filled in (dry run)" if dry_run else "filled in"
    typer.echo(f"{params}: {len(pinned.changes)} revisions {done}, {pinned.kept} as before")
    if pinned.mistakes:
        raise InputError(*pinned.mistakes)

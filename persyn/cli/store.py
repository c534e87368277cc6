"""`persyn store`: what has been paid for."""

from pathlib import Path
from typing import Annotated

import typer

store = typer.Typer(no_args_is_help=True, help="The response store: every teacher response and every score paid for.")

Folder = Annotated[
    Path | None, typer.Option("--store", help="Its folder. Default: $PERSYN_STORE, else in the user's cache.")
]


@store.command()
def verify(folder: Folder = None) -> None:
    """Check every record. Exits with 1 if one is damaged; its response will be generated again."""
    from persyn import store as module

    damaged: list[str] = []
    for shelf in _shelves(folder):
        report, _ = module.verify(shelf)
        damaged += report.damaged
        typer.echo(
            f"{shelf.name}: {report.rows} rows in {report.records} records in {report.journals} journals, "
            f"{report.conflicts} answered twice, {len(report.damaged)} damaged"
        )
    for place in damaged:
        typer.echo(f"damaged: {place}", err=True)
    if damaged:
        typer.echo("`persyn store gc` removes damaged records; the next run generates them again", err=True)
        raise typer.Exit(1)


@store.command()
def stats(folder: Folder = None) -> None:
    """What has been paid for, by model."""
    from persyn import store as module

    for shelf in _shelves(folder):
        typer.echo(f"{shelf.name}: " + ", ".join(f"{n:,} {what}" for what, n in module.count_rows(shelf).items()))


@store.command()
def gc(folder: Folder = None) -> None:
    """Merge journals; drop damaged and repeated records. No response is lost."""
    from persyn import store as module

    for shelf in _shelves(folder):
        before = sum(path.stat().st_size for path in shelf.glob("j*-*.log"))
        report = module.compact(shelf)
        after = sum(path.stat().st_size for path in shelf.glob("j*-*.log"))
        typer.echo(
            f"{shelf.name}: {report.rows} rows kept, {report.journals} journals merged into 1, "
            f"{len(report.damaged)} damaged records dropped, {(before - after) / 1e6:.1f} MB freed"
        )


def _shelves(folder: Path | None) -> list[Path]:
    from persyn.errors import InputError
    from persyn.store import shelves, store_folder

    folder = folder or store_folder()
    if folder and not folder.is_dir():
        raise InputError(f"there is no store at {folder}; a run makes one, --store or PERSYN_STORE names another")
    return shelves(folder)

"""`persyn diff`: how prompts, allocation, scores and evaluation differ between two revisions."""

from typing import Annotated

import typer


def diff(
    rev_a: Annotated[
        str, typer.Argument(help="A commit, a branch, a tag, an experiment's name, or workspace.")
    ] = "HEAD",
    rev_b: Annotated[str, typer.Argument(help="The same.")] = "workspace",
    strategy: Annotated[str | None, typer.Option(help="Compare allocation and evaluation of this one only.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many moved prompts to list for each strategy.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="The same as json, with every moved prompt.")] = False,
) -> None:
    """What changed from A to B: prompts, their teachers, scores, evaluation item by item.

    Without arguments, the workspace is compared with the last commit, as `dvc diff` does. `dvc params diff` and
    `dvc metrics diff` compare parameters and metrics.
    """
    import json
    from functools import partial

    from rich.console import Console
    from rich.markup import escape

    from persyn.errors import InputError, nearest, printable
    from persyn.inspection.diff import build_diff
    from persyn.inspection.diff_text import diff_text
    from persyn.project.snapshot import open_snapshot

    status = Console(stderr=True).status(f"reading {escape(printable(rev_a))} and {escape(printable(rev_b))}")
    read = partial(open_snapshot, only=strategy, lenient=True)
    with status, read(rev_a) as a, read(rev_b) as b:
        known = {name for side in (a, b) for name in side.section("strategies")}
        if strategy is not None and strategy not in known:
            raise InputError(f"neither side has a strategy {strategy!r}{nearest(strategy, sorted(known))}")
        found = build_diff(a, b, strategy)
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
    else:
        Console().print(diff_text(found, limit))

"""`persyn diff`: how allocation, scores and costs moved between two revisions."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from persyn.inspection.diff import State
    from persyn.project.revision import Project


def diff(
    rev_a: Annotated[
        str, typer.Argument(help="A commit, a branch, a tag, an experiment's name, or workspace.")
    ] = "HEAD",
    rev_b: Annotated[str, typer.Argument(help="The same.")] = "workspace",
    strategy: Annotated[str | None, typer.Option(help="Of allocation, evaluation and tokens only this one's.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many moved prompts to list a strategy.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as json, with every moved prompt.")] = False,
) -> None:
    """What changed from A to B: parameters, prompts, who answers them, scores, router, evaluation, tokens.

    Without arguments: the data and metrics as they lie against the last commit, as `dvc diff` does.
    """
    import json

    from rich.console import Console
    from rich.markup import escape

    from persyn.errors import InputError, nearest, printable
    from persyn.inspection.diff import build_diff
    from persyn.inspection.diff_text import diff_text
    from persyn.project.revision import open_project

    console = Console(stderr=True)
    with console.status(f"reading {escape(printable(rev_a))}"), open_project(rev_a) as project:
        a = _state(project, strategy)
    with console.status(f"reading {escape(printable(rev_b))}"), open_project(rev_b) as project:
        b = _state(project, strategy)
    known = {name for state in (a, b) for name in state.params.get("strategies") or {}}
    if strategy is not None and strategy not in known:
        raise InputError(f"neither side has a strategy {strategy!r}{nearest(strategy, sorted(known))}")
    found = build_diff(a, b, strategy)
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
    else:
        Console().print(diff_text(found, limit))


def _state(project: "Project", strategy: str | None) -> "State":
    from persyn.errors import InputError
    from persyn.inspection.diff import State
    from persyn.schemas import PROMPTS, REWARDS, ROUTES, SAMPLES

    lacking: dict[str, list[str]] = {}

    def read(path: str, schema: Any = None) -> Any:
        try:
            found = project.table(path, schema) if schema else project.json(path)
            reason = "not made yet" if found is None else None
        except InputError as error:
            found, reason = None, str(error).removeprefix(f"{path} of {project.name} ").removeprefix("is ")
        if reason:
            lacking.setdefault(reason, []).append(path)
        return found

    def read_all(folder: str, end: str, schema: Any = None) -> dict[str, Any]:
        names = [name for name in project.section("strategies") if strategy in (None, name)]
        found = {name: read(f"{folder}/{name}.{end}", schema) for name in names}
        return {name: content for name, content in found.items() if content is not None}

    state = State(
        project.name,
        project.params(),
        prompts=read("data/prompts.parquet", PROMPTS),
        rewards=read("data/rewards.parquet", REWARDS),
        routes=read_all("data/routes", "parquet", ROUTES),
        samples=read_all("data/evaluation", "parquet", SAMPLES),
        evaluation=read_all("metrics/evaluation", "json"),
        router=read("metrics/router.json"),
        cost=read("metrics/cost.json"),
        defects=read("metrics/defects.json"),
    )
    state.missing = [f"{', '.join(paths)}: {reason}" for reason, paths in lacking.items()]
    return state

"""`persyn report`: the project as one html file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import polars as pl

    from persyn.project.revision import Project
    from persyn.report.page import Experiment, Run

OUT = Path("metrics/reports/report.html")
FILES = ("prompts", "defects", "rewards", "router", "comparison", "cost")


def report(
    out: Annotated[Path, typer.Option(help="The file to write.")] = OUT,
    sample: Annotated[int, typer.Option(min=0, help="Prompts at most that the page lets you browse.")] = 5000,
    rev: Annotated[str | None, typer.Option(help="As of a commit, a branch, a tag or an experiment.")] = None,
) -> None:
    """Where the prompts went and why, whether it was worth it, and the prompts themselves, as one html file."""
    from rich.console import Console

    from persyn.errors import InputError
    from persyn.files import write_text
    from persyn.project.revision import open_project
    from persyn.report import build_report

    with open_project(rev) as project, Console(stderr=True).status("reading the project"):
        run = read_run(project)
    with Console(stderr=True).status("making the report"):
        page = build_report(run, sample=sample)
    try:
        write_text(page, out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}; choose another --out") from error
    typer.echo(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB)")


def read_run(project: "Project") -> "Run":
    """All that there is of the project, and its experiments.

    Raises:
        InputError: there is no params.yaml, or a table is not what its schema says.
    """
    from persyn import schemas
    from persyn.report.page import Run

    params = project.params()
    teachers, strategies = list(params.get("teachers") or {}), list(params.get("strategies") or {})
    of_each = {kind: _by_strategy(project, kind, strategies) for kind in ("allocation", "dataset", "evaluation")}
    experiments, note = _experiments()
    profile = Path.cwd().name if Path.cwd().parent.name == "profiles" else "demo"
    return Run(
        params,
        profile if project.name == "workspace" else f"{profile} at {project.name}",
        {name: project.json(f"metrics/{name}.json") for name in FILES} | of_each,
        project.table("data/prompts.parquet", schemas.PROMPTS),
        project.tables("data/responses", teachers, schemas.RESPONSES),
        project.tables("data/quality", teachers, schemas.QUALITY),
        project.tables("data/learnability", teachers, schemas.LEARNABILITY),
        project.table("data/defects.parquet", schemas.DEFECTS),
        project.table("data/rewards.parquet", schemas.REWARDS),
        project.table("data/pairs.parquet", schemas.PAIRS),
        project.tables("data/routes", strategies, schemas.ROUTES),
        project.tables("data/routed", strategies, schemas.RESPONSES),
        project.tables("data/dataset", strategies, schemas.DATASET),
        project.tables("data/evaluation", strategies, schemas.SAMPLES),
        _present({name: _csv(project, f"metrics/reports/training/{name}.csv") for name in strategies}),
        _csv(project, "metrics/reports/reliability.csv"),
        experiments,
        note,
    )


def _by_strategy(project: "Project", kind: str, strategies: list[str]) -> dict[str, Any]:
    return _present({name: project.json(f"metrics/{kind}/{name}.json") for name in strategies})


def _present(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}


def _csv(project: "Project", path: str) -> "pl.DataFrame | None":
    import io

    import polars as pl

    content = project.read(path)
    return None if content is None else pl.read_csv(io.BytesIO(content))


def _experiments() -> "tuple[list[Experiment], str]":
    """DVC's experiments whose parameters or numbers differ from their commit's; or none, and why not."""
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            commits = list(repo.experiments.ls(all_commits=True))
            states = repo.experiments.show(revs=commits, hide_queued=True, hide_failed=True) if commits else []
        found = []
        for state in states:
            own = _experiment(state)
            runs = [_experiment(group.revs[0], group.name) for group in state.experiments or []]
            found += [run for run in runs if run and not (own and _numbers(run) == _numbers(own))]
        return found, ""
    except Exception as error:  # noqa: BLE001 - whatever DVC cannot do, the report does without
        return [], f"DVC's experiments could not be read: {str(error) or type(error).__name__}"


def _experiment(state: Any, name: str | None = None) -> "Experiment | None":
    from persyn.report.page import Experiment

    if state.data is None:
        return None
    params = (state.data.params or {}).get("params.yaml", {}).get("data") or {}
    files: dict[str, dict[str, Any]] = {"allocation": {}, "evaluation": {}}
    for path, content in (state.data.metrics or {}).items():
        kind, strategy = Path(path).parent.name, Path(path).stem
        if path.startswith(f"metrics/{kind}/") and kind in files and content.get("data"):
            files[kind][strategy] = content["data"]
    return Experiment(name or state.name or state.rev[:7], params, files["allocation"], files["evaluation"])


def _numbers(run: "Experiment") -> tuple[Any, ...]:
    return run.params, run.allocation, run.evaluation

"""`persyn plan` and `persyn ledger`: what a run costs, before and after."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import polars as pl

    from persyn.project.params import Params

Data = Annotated[Path, typer.Option(help="The pipeline's data folder.")]
PARAMS = Path("params.yaml")


def plan(
    params: Annotated[Path, typer.Option(help="Of another profile: profiles/paper-instruct/params.yaml.")] = PARAMS,
    probe: Annotated[
        int, typer.Option(min=0, help="Ask each teacher this many parallel prompts first. Their responses are kept.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The same as json.")] = False,
    data: Data = Path("data"),
) -> None:
    """Estimate what a run will cost: calls, tokens, GPU-hours, disk and money, as intervals.

    A teacher that fails stops no other: all errors of a probe are told at its end.
    """
    import json

    from persyn.evaluation import check_tasks
    from persyn.generation.terms import refused_teachers
    from persyn.planning import build_plan
    from persyn.planning.known import known_routes
    from persyn.planning.retries import Checks, fit_scores
    from persyn.planning.text import plan_text
    from persyn.project.params import read_params
    from persyn.schemas import DEFECTS, QUALITY, ROUTES, read_table
    from persyn.statistics import what_shows
    from persyn.store import store_folder

    read = read_params(params)
    check_tasks(params.parent / "tasks", read.evaluation.tasks)
    teachers, folder = read.teachers, store_folder()
    prompts, origin = _prompts(data, read)
    if probe:
        _probe(prompts, read, folder, probe)
    files = {name: data / "routes" / f"{name}.parquet" for name in read.strategies}
    made = {name: read_table(file, ROUTES) for name, file in files.items() if file.is_file()}
    routes = known_routes(prompts, list(read.pool), read.strategies, made)
    scores = {name: data / "quality" / f"{name}.parquet" for name in teachers}
    scored = {name: read_table(file, QUALITY) for name, file in scores.items() if file.is_file()}
    if (data / "defects.parquet").is_file():
        flaws = read_table(data / "defects.parquet", DEFECTS), read.dataset.over(read.defects)
        scored = {name: fit_scores(table, *flaws) for name, table in scored.items()}
    checks = Checks(read.quality, read.dataset, scored, _tried(data, read, routes) if read.dataset.retries else [])
    paying = folder, read.prices.in_batches(read.in_batches), read.budget
    found = build_plan(prompts, teachers, read.strategies, routes, *paying, checks)
    found["prompts"]["from"], found["refused"] = origin, refused_teachers(teachers, read.licenses)
    found["precomputed"] = [name for name, teacher in teachers.items() if teacher.precomputed]
    found["told"] = read.told
    found["evaluation"] = what_shows(read.evaluation.limit)
    typer.echo(json.dumps(found, indent=2) if as_json else plan_text(found))


def _tried(data: Path, params: "Params", routes: "dict[str, pl.DataFrame]") -> "list[pl.DataFrame]":
    """What the strategies that have been run with this dataset.require tell of the responses they asked for."""
    from persyn.files import read_json
    from persyn.planning.retries import tried_pairs
    from persyn.schemas import DATASET, RESPONSES, read_table

    tried = []
    for name, table in routes.items():
        files = [data / part / f"{name}.parquet" for part in ("routed", "dataset")]
        counts = data.parent / "metrics" / "dataset" / f"{name}.json"
        if all(file.is_file() for file in (*files, counts)):
            found = read_json(counts)
            limited = {"max_per_teacher", "max_per_source"} & found["dropped"].keys()  # what is left out may be right
            if found.get("require", {}).get("least") == params.dataset.require and not limited:
                tried.append(tried_pairs(table, read_table(files[0], RESPONSES), read_table(files[1], DATASET)))
    return tried


def ledger(data: Data = Path("data")) -> None:
    """What the results cost: calls and tokens spent, cached and saved, and money at the prices now in params.yaml."""
    import polars as pl

    from persyn.cost import Paid, build_ledger
    from persyn.planning.text import ledger_text
    from persyn.planning.usage import batched_pairs
    from persyn.project.params import read_params
    from persyn.quality import judge_ledger
    from persyn.responses import asked_of, count_lost
    from persyn.schemas import PROMPTS, RESPONSES, ROUTES, read_folder, read_table
    from persyn.store import store_folder

    params = read_params()
    parallel = pl.concat(read_folder(data / "responses", list(params.teachers), RESPONSES).values())
    routed = read_folder(data / "routed", list(params.strategies), RESPONSES)
    prompts = read_table(data / "prompts.parquet", PROMPTS)
    judge = judge_ledger(prompts, [parallel, *routed.values()], store_folder(), params.quality)
    paid_for = Paid(
        count_lost(asked_of([parallel, *routed.values()], prompts), params.teachers, store_folder()),
        batched_pairs(prompts, params.teachers, store_folder()),
    )
    files = {name: data / "routes" / f"{name}.parquet" for name in routed}
    routes = {name: read_table(file, ROUTES) for name, file in files.items() if file.is_file()}
    ledger = build_ledger(prompts, parallel, routed, params.prices, judge, paid_for, routes, params.asked_student)
    typer.echo(ledger_text(ledger))


def _prompts(data: Path, params: "Params") -> tuple["pl.DataFrame", str]:
    """The prompts of params.yaml, and their origin: the table, else the raw files, else the declared limits."""
    from persyn.planning.known import declared_prompts
    from persyn.prompts import build_prompts
    from persyn.schemas import PROMPTS, read_table
    from persyn.verifiers import check_references

    section = params.prompts
    if (data / "prompts.parquet").is_file():
        table = read_table(data / "prompts.parquet", PROMPTS)
        sources = {source.title for source in section.sources}
        num_parallel = table.height if section.num_parallel is None else section.num_parallel
        if set(table["source"]) == sources and table["parallel"].sum() == num_parallel:
            return table, "prompts.parquet"
    if any(source.hub for source in [*section.sources, *section.decontaminate]):
        return declared_prompts(section.sources, section.num_parallel), "by the limits of prompts.sources"
    prompts = build_prompts(data / "raw", section)[0]
    check_references(prompts, params.quality.methods)
    return prompts, "from the raw files"


def _probe(prompts: "pl.DataFrame", params: "Params", folder: Path, count: int) -> None:
    """Ask every teacher for some of its prompts.

    Raises:
        InputError: the mistakes of all teachers.
    """
    from persyn.cli.generate import mistakes_of
    from persyn.errors import InputError
    from persyn.prompts import anchor_prompts
    from persyn.responses import check_asking, generate_responses

    if prompts["prompt"].null_count():
        raise InputError("--probe needs the prompts, which are not made yet; run `dvc repro prompts` first")
    allowed = params.responses.max_error_share
    parallel = prompts.filter("parallel")
    wanted = {
        name: anchor_prompts(parallel, min(count, parallel.height, teacher.anchors or count))
        for name, teacher in params.teachers.items()
    }
    check_asking({name: [table] for name, table in wanted.items()}, params.teachers, params.licenses, folder)
    mistakes: list[str] = []
    for name, teacher in params.teachers.items():
        speed = params.speed_of(name)
        if getattr(speed, "batch", None):
            speed = speed.changed(batch=None)  # a probe is small, and a batch may take a day
        paying = folder, speed, params.budget
        try:
            generate_responses(wanted[name], name, teacher, *paying, max_error_share=allowed)
        except (InputError, OSError) as error:
            mistakes += mistakes_of(name, error)
    if mistakes:
        raise InputError(*mistakes)

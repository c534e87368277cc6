"""`persyn plan` and `persyn ledger`: the bill before and after a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from persyn.generation import Teacher
    from persyn.generation.budget import Budget

Data = Annotated[Path, typer.Option(help="The pipeline's data folder.")]
PARAMS = Path("params.yaml")


def plan(
    params: Annotated[Path, typer.Option(help="Of another profile: profiles/paper-instruct/params.yaml.")] = PARAMS,
    probe: Annotated[
        int, typer.Option(min=0, help="Ask each teacher so many parallel prompts first. They are kept and paid once.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The same as json.")] = False,
    data: Data = Path("data"),
) -> None:
    """What a run will have to pay for, before it runs: calls, tokens, GPU-hours, disk and money, as intervals."""
    import json

    import stages
    from persyn.cost import Prices
    from persyn.generation import Teacher
    from persyn.generation.budget import Budget
    from persyn.generation.terms import Licenses, check_terms, refused_teachers
    from persyn.planning import build_plan
    from persyn.planning.known import known_routes
    from persyn.planning.text import plan_text
    from persyn.schemas import ROUTES, read_table
    from persyn.store import store_folder

    stages.PARAMS, read = params, stages.read_params
    teachers, licenses = stages.read_entries("teachers", Teacher), Licenses(**read("licenses", Licenses))
    strategies, prices = read("strategies"), Prices(**read("prices", Prices))
    prices.check(teachers)
    licenses.check(teachers)
    prompts, origin = _prompts(data)
    budget, folder = Budget(**read("budget", Budget)), store_folder()
    if probe:
        check_terms(teachers, licenses)
        _probe(prompts, teachers, budget, folder, probe)
    files = {name: data / "routes" / f"{name}.parquet" for name in strategies}
    made = {name: read_table(file, ROUTES) for name, file in files.items() if file.is_file()}
    routes = known_routes(prompts, list(teachers), strategies, made)
    methods = read("quality").get("methods", {})
    found = build_plan(prompts, teachers, strategies, routes, folder, prices, budget, methods)
    found["prompts"]["from"], found["refused"] = origin, refused_teachers(teachers, licenses)
    found["precomputed"] = [name for name, teacher in teachers.items() if teacher.precomputed]
    typer.echo(json.dumps(found, indent=2) if as_json else plan_text(found))


def ledger(data: Data = Path("data")) -> None:
    """What the results needed: spent, cached and saved, and money at the prices that params.yaml gives now."""
    import polars as pl

    from persyn.cost import Prices, build_ledger
    from persyn.planning.text import ledger_text
    from persyn.schemas import PROMPTS, RESPONSES, read_folder, read_table
    from stages import read_params

    teachers, prices = list(read_params("teachers")), Prices(**read_params("prices", Prices))
    prices.check(teachers)
    parallel = pl.concat(read_folder(data / "responses", teachers, RESPONSES).values())
    routed = read_folder(data / "routed", list(read_params("strategies")), RESPONSES)
    typer.echo(ledger_text(build_ledger(read_table(data / "prompts.parquet", PROMPTS), parallel, routed, prices)))


def _prompts(data: Path) -> tuple["pl.DataFrame", str]:
    """The prompts that params.yaml means, and where they are from: made, or to be made of local files, or declared."""
    from persyn.planning.known import declared_prompts
    from persyn.prompts import build_prompts
    from persyn.schemas import PROMPTS, read_table
    from stages import read_params

    section = read_params("prompts", build_prompts)
    if (data / "prompts.parquet").is_file():
        table = read_table(data / "prompts.parquet", PROMPTS)
        sources = {source.get("path") or source.get("hub") for source in section["sources"]}
        num_parallel = table.height if section["num_parallel"] is None else section["num_parallel"]
        if set(table["source"]) == sources and table["parallel"].sum() == num_parallel:
            return table, "prompts.parquet"
    if any(source.get("hub") for source in [*section["sources"], *section["decontaminate"]]):
        return declared_prompts(section["sources"], section["num_parallel"]), "by the limits of prompts.sources"
    return build_prompts(data / "raw", **section)[0], "from the raw files"


def _probe(
    prompts: "pl.DataFrame", teachers: "Mapping[str, Teacher]", budget: "Budget", folder: Path, count: int
) -> None:
    from persyn.errors import InputError
    from persyn.prompts import anchor_prompts
    from persyn.responses import generate_responses
    from stages import read_params, read_speed

    if prompts["prompt"].null_count():
        raise InputError("--probe needs the prompts, which are not here; run `dvc repro prompts` first")
    limits = read_params("responses", generate_responses) | {"budget": budget}
    parallel = prompts.filter("parallel")
    for name, teacher in teachers.items():
        asked = anchor_prompts(parallel, min(count, parallel.height, teacher.anchors or count))
        generate_responses(asked, name, teacher, folder, read_speed(name, teacher.backend), **limits)

"""`persyn show`: one prompt through the whole pipeline."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from persyn.inspection.trace import Made
    from persyn.project.revision import Project


def show(
    prompt_id: Annotated[
        str | None, typer.Argument(help="A prompt's id, or as much of its beginning as is its own.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="List the prompts that contain this text.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many prompts --search lists.")] = 20,
    rev: Annotated[str | None, typer.Option(help="As of a commit, a branch, a tag or an experiment.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as json.")] = False,
) -> None:
    """One prompt through the whole pipeline: every teacher's response and its scores, pairs, routes, datasets.

    `persyn show --search TEXT` finds the id; the ids stand in data/prompts.parquet.
    """
    import json

    from rich.console import Console

    from persyn.errors import InputError
    from persyn.inspection.trace import find_prompt, search_prompts
    from persyn.inspection.trace_text import search_text, trace_text
    from persyn.project.revision import open_project
    from persyn.schemas import PROMPTS

    if (prompt_id is None) == (search is None):
        got = "neither" if search is None else "both"
        raise InputError(f"got {got} of a prompt's id and --search; `persyn show --search TEXT` lists ids to show")
    console, status = Console(), Console(stderr=True).status("reading")
    with status, open_project(rev) as project:
        prompts = project.table("data/prompts.parquet", PROMPTS)
        if prompts is None:
            raise InputError(f"{project.name} has no data/prompts.parquet yet; run `dvc repro prompts` to make it")
        if search is not None:
            matching = search_prompts(prompts, search)
            found: Any = matching.head(limit).to_dicts()
            text = search_text(matching, limit)
        else:
            found = _trace(project, _read(project, prompts), find_prompt(prompts, prompt_id or ""))
            text = trace_text(found)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        console.print(text)


def _read(project: "Project", prompts: Any) -> "Made":
    from persyn.inspection.trace import Made
    from persyn.schemas import DATASET, DEFECTS, LEARNABILITY, PAIRS, QUALITY, RESPONSES, REWARDS, ROUTES

    teachers, strategies = list(project.section("teachers")), list(project.section("strategies"))
    return Made(
        prompts,
        responses=project.tables("data/responses", teachers, RESPONSES),
        quality=project.tables("data/quality", teachers, QUALITY),
        learnability=project.tables("data/learnability", teachers, LEARNABILITY),
        defects=project.table("data/defects.parquet", DEFECTS),
        rewards=project.table("data/rewards.parquet", REWARDS),
        pairs=project.table("data/pairs.parquet", PAIRS),
        routes=project.tables("data/routes", strategies, ROUTES),
        routed=project.tables("data/routed", strategies, RESPONSES),
        dataset=project.tables("data/dataset", strategies, DATASET),
        teachers=teachers,
        strategies=strategies,
    )


def _trace(project: "Project", made: "Made", prompt_id: str) -> dict[str, Any]:
    from persyn.dataset import build_dataset
    from persyn.defects import Policies
    from persyn.errors import check_keys
    from persyn.inspection.trace import trace_prompt

    defects, dataset = project.section("defects"), project.section("dataset")
    check_keys("defects", defects, Policies)
    check_keys("dataset", dataset, build_dataset)
    role = _role(project, made, prompt_id)
    return trace_prompt(made, prompt_id, Policies(**defects), keep_length=dataset.get("keep_length", False), role=role)


def _role(project: "Project", made: "Made", prompt_id: str) -> str | None:
    """What the router uses a prompt for; None where that cannot be told."""
    import polars as pl

    if prompt_id not in made.prompts.filter("parallel")["prompt_id"]:
        return "not used: it is not parallel"
    if made.rewards is None or made.pairs is None or "model" not in (section := project.section("router")):
        return None
    from persyn.errors import check_keys
    from persyn.inspection.trace import router_role
    from persyn.router.settings import Settings

    check_keys("router", section, Settings)
    entries = project.section("teachers")
    anchored = [name for name, entry in entries.items() if (entry or {}).get("anchors") is not None]
    pairs = made.pairs.filter(~(pl.col("winner").is_in(anchored) | pl.col("loser").is_in(anchored)))
    return router_role(made.prompts, made.rewards, pairs, Settings(**section), prompt_id)

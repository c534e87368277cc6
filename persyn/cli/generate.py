"""`persyn generate`: fill the store with a teacher's responses to one share of its prompts."""

import logging
from pathlib import Path
from typing import Annotated

import typer


def generate(
    teacher: Annotated[str, typer.Option(help="Its name in params.yaml.")],
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n shares, counted from 0.")] = "0/1",
    prompts: Annotated[Path, typer.Option(help="The table of prompts.")] = Path("data/prompts.parquet"),
    routes: Annotated[Path, typer.Option(help="The folder of routes; missing ones are skipped.")] = Path("data/routes"),
) -> None:
    """Generate one share of the responses that a teacher still owes; `dvc repro` then finds them in the store.

    Its prompts are the parallel set and those that any strategy routes to it. Shares may run at the same time, on any
    machines that see the store.
    """
    from persyn.errors import InputError, nearest
    from persyn.project.params import read_params
    from persyn.prompts import wanted_prompts
    from persyn.responses import check_asking, generate_responses
    from persyn.schemas import PROMPTS, ROUTES, read_table
    from persyn.store import key_range, store_folder

    logging.basicConfig(format="%(message)s")
    logging.getLogger("persyn").setLevel(logging.INFO)
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise InputError(f"--shard is {shard!r}; it must be i/n, such as 0/8 to 7/8")
    part = int(index), int(count)
    key_range(*part)
    params = read_params()
    if teacher not in params.teachers:
        raise InputError(f"--teacher {teacher!r} is not in params.yaml{nearest(teacher, params.teachers)}")
    entry = params.teachers[teacher]
    tables = [read_table(path, ROUTES) for path in sorted(routes.glob("*.parquet"))]
    wanted = wanted_prompts(read_table(prompts, PROMPTS), teacher, entry.anchors, tables)
    check_asking({teacher: wanted}, params.teachers, params.licenses, store_folder())
    budget = params.budget.divided(store_folder(), part[1])
    allowed, speed = params.responses.max_error_share, params.speed_of(teacher)
    responses = generate_responses(wanted, teacher, entry, store_folder(), speed, budget, part, max_error_share=allowed)
    typer.echo(
        f"{teacher}: shard {shard} has {responses.height} of {wanted.height} prompts; all its responses are stored"
    )

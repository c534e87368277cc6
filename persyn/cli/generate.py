"""`persyn generate`: a teacher's share of its prompts, into the store."""

from pathlib import Path
from typing import Annotated

import typer


def generate(
    teacher: Annotated[str, typer.Option(help="Its name in params.yaml.")],
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n shares, counted from 0.")] = "0/1",
    prompts: Annotated[Path, typer.Option(help="The table of prompts.")] = Path("data/prompts.parquet"),
    routes: Annotated[Path, typer.Option(help="The folder of routes; those there are are read.")] = Path("data/routes"),
) -> None:
    """Have a teacher answer its share of what it is still to answer, into the store: `dvc repro` then asks nothing.

    The parallel set, and what any strategy has routed to it. Shares may run at once on any machines that see the store.
    """
    from stages import run

    run(_generate, teacher, shard, str(prompts), str(routes))


def _generate(name: str, shard: str, prompts: str, routes: str) -> None:
    from persyn.errors import InputError
    from persyn.generation import Teacher
    from persyn.generation.budget import Budget
    from persyn.generation.terms import Licenses, check_terms
    from persyn.prompts import wanted_prompts
    from persyn.responses import generate_responses
    from persyn.schemas import PROMPTS, ROUTES, read_table
    from persyn.store import key_range, store_folder
    from stages import read_params, read_speed

    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise InputError(f"--shard is {shard!r}; it must be i/n, such as 0/8 to 7/8")
    part = int(index), int(count)
    key_range(*part)
    entry = Teacher(**read_params(f"teachers.{name}", Teacher))
    licenses = Licenses(**read_params("licenses", Licenses))
    licenses.check(read_params("teachers"))
    check_terms({name: entry}, licenses)
    tables = [read_table(path, ROUTES) for path in sorted(Path(routes).glob("*.parquet"))]
    wanted = wanted_prompts(read_table(prompts, PROMPTS), name, entry.anchors, tables)
    limits = read_params("responses", generate_responses)
    limits["budget"] = Budget(**read_params("budget", Budget)).divided(store_folder(), part[1])
    speed = read_speed(name, entry.backend)
    table = generate_responses(wanted, name, entry, store_folder(), speed, **limits, part=part)
    typer.echo(f"{name}: {table.height} of {wanted.height} prompts are in shard {shard}; all of them are in the store")

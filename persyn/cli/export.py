"""`persyn export`: a strategy's dataset as a folder that the Hugging Face hub, `datasets` and trainers take."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from persyn.cli.project import Project
    from persyn.generation import Teacher


def export(
    strategy: Annotated[str, typer.Option(help="Its name in params.yaml.")] = "persyn",
    out: Annotated[Path | None, typer.Option(help="The folder. Default: exports/<strategy>.")] = None,
    rev: Annotated[
        str | None, typer.Option(help="A commit, tag or experiment. Default: the files as they lie.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in the folder.")] = False,
    push: Annotated[str | None, typer.Option(help="Upload it to this dataset of the hub, owner/name.")] = None,
    public: Annotated[bool, typer.Option("--public/--private", help="Who sees what is pushed.")] = False,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Push publicly what terms forbid or leave open: you have leave.")
    ] = False,
) -> None:
    """Write a strategy's dataset with its card as a Hugging Face dataset: data of the pipeline, out of the project.

    `datasets.load_dataset(FOLDER)` and TRL's SFTTrainer take it as it is. Nothing leaves this machine without --push.
    """
    from persyn.cli.project import open_project
    from persyn.export import against_publishing
    from persyn.hub import check_folder, check_push, push_export, write_export
    from persyn.schemas import InputError

    folder = out or Path("exports") / strategy
    check_folder(folder)
    if push:
        check_push(push)
    elif public:
        raise InputError("--public says who sees what is pushed; name the dataset of the hub by --push owner/name")
    with open_project(rev) as project:
        rows, card = _make(project, strategy)
    reasons = against_publishing(rows)
    if push and public and reasons and not accept_terms:
        raise InputError(
            f"not pushed publicly: {'; '.join(reasons)}; push it privately, leave them out, or say by --accept-terms "
            f"that you have leave to publish"
        )
    shards, teachers = write_export(rows, card, folder, force), rows["teacher_id"].n_unique()
    typer.echo(
        f"{folder}: {rows.height} rows of {teachers} teacher{'s' * (teachers != 1)} in {shards} parquet "
        f"file{'s' * (shards != 1)}, {rows['reward'].count()} rows with scores; README.md is the card"
    )
    if push:
        typer.echo(f"pushed: {push_export(folder, push, not public)}")


def _make(project: "Project", strategy: str) -> "tuple[pl.DataFrame, Callable[[dict[str, Any]], str]]":
    """EXPORT of a strategy, and what writes its card, as write_export takes it."""
    from persyn.card import build_card
    from persyn.export import build_export, describe_export
    from persyn.schemas import InputError
    from stages import SECRET

    params = project.params()
    teachers = _teachers(params, strategy)
    tables = _tables(project, strategy, teachers)
    _gate(params, teachers, tables["dataset"])
    rows = build_export(**tables, teachers=teachers)
    names = (f"dataset/{strategy}", "prompts", f"allocation/{strategy}", "router")
    paths = [f"metrics/{name}.json" for name in names]
    counts, cleaning, allocation, router = (_there(project, path, project.json(path)) for path in paths)
    sections = describe_export(strategy, rows, params, allocation, router, _provenance(project, strategy))
    about = tables["prompts"], tables["dataset"], counts, teachers, cleaning
    card = partial(build_card, strategy, *about, sections)
    if SECRET.search(card()):
        raise InputError("the card would show what looks like a key; take it out of params.yaml and revoke it")
    return rows, card


def _teachers(params: dict[str, Any], strategy: str) -> "dict[str, Teacher]":
    from persyn.generation import Teacher
    from persyn.schemas import InputError, check_keys, nearest

    if strategy not in params["strategies"]:
        raise InputError(f"--strategy {strategy!r} is not in params.yaml{nearest(strategy, params['strategies'])}")
    for name, entry in params["teachers"].items():
        check_keys(f"teachers.{name}", entry, Teacher)
    return {name: Teacher(**entry) for name, entry in params["teachers"].items()}


def _tables(project: "Project", strategy: str, teachers: "dict[str, Teacher]") -> "dict[str, pl.DataFrame]":
    """The tables of build_export, by their names there."""
    import polars as pl

    from persyn import schemas

    def read(path: str, schema: pl.Schema) -> pl.DataFrame:
        found: pl.DataFrame = _there(project, path, project.table(path, schema))
        return found

    return {
        "prompts": read("data/prompts.parquet", schemas.PROMPTS),
        "dataset": read(f"data/dataset/{strategy}.parquet", schemas.DATASET),
        "routes": read(f"data/routes/{strategy}.parquet", schemas.ROUTES),
        "routed": read(f"data/routed/{strategy}.parquet", schemas.RESPONSES),
        "parallel": pl.concat(read(f"data/responses/{name}.parquet", schemas.RESPONSES) for name in teachers),
        "rewards": read("data/rewards.parquet", schemas.REWARDS),
    }


def _there(project: "Project", path: str, found: Any) -> Any:
    from persyn.schemas import InputError

    if found is None:
        raise InputError(f"{path} of {project.name} is not there; run `dvc repro` (or `dvc pull`) to make it")
    return found


def _gate(params: dict[str, Any], teachers: "dict[str, Teacher]", dataset: "pl.DataFrame") -> None:
    from persyn.licenses import Licenses, check_terms
    from persyn.schemas import InputError, check_keys

    section = params.get("licenses") or {}
    check_keys("licenses", section, Licenses)
    licenses = Licenses(**section)
    licenses.check(teachers)
    names = dataset["teacher"].unique().sort().to_list()
    unknown = [name for name in names if name not in teachers]
    if unknown:
        raise InputError(
            f"the dataset holds answers of {', '.join(unknown)}, no teacher of params.yaml; run `dvc repro`"
        )
    check_terms({name: teachers[name] for name in names}, licenses)


def _provenance(project: "Project", strategy: str) -> dict[str, str | None]:
    """What made the dataset: label -> value. Its md5 only where dvc.lock names the table that is read."""
    import hashlib
    from importlib.metadata import version

    from ruamel.yaml import YAML

    path = f"data/dataset/{strategy}.parquet"
    lock = YAML(typ="safe", pure=True).load(project.read("dvc.lock") or b"") or {}
    outs = lock.get("stages", {}).get(f"dataset@{strategy}", {}).get("outs", [])
    known = {entry.get("path"): entry.get("md5") for entry in outs}
    md5 = hashlib.md5(project.read(path) or b"", usedforsecurity=False).hexdigest()
    return {
        "PerSyn": version("persyn"),
        "git commit": project.commit,
        "DVC": f"{path} is {md5} (md5, dvc.lock)" if known.get(path) == md5 else None,
    }

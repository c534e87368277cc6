"""`persyn export`: a strategy's dataset as a folder that the Hugging Face hub, `datasets` and trainers take."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import polars as pl

    from persyn.generation import Teacher
    from persyn.project.revision import Project


UNREAD = ("data/quality/", "data/defects", "data/pairs", "metrics/rewards")
"""What the stages behind an export have that it does not read itself, so that a cache may lack it."""


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
    from persyn.errors import InputError
    from persyn.export import against_publishing
    from persyn.export.hub import check_folder, check_push, push_export, write_export
    from persyn.project.revision import open_project

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
    from persyn.dataset.card import build_card
    from persyn.export import build_export, describe_export

    params = project.params()
    teachers = _teachers(params, strategy)
    lock = project.yaml("dvc.lock") or {}
    _check_lock(project, params, lock, teachers, strategy)
    tables = _tables(project, strategy, teachers)
    _gate(params, teachers, tables["dataset"])
    rows = build_export(**tables, teachers=teachers)
    names = (f"dataset/{strategy}", "prompts", f"allocation/{strategy}", "router")
    paths = [f"metrics/{name}.json" for name in names]
    counts, cleaning, allocation, router = (_there(project, path, project.json(path)) for path in paths)
    sections = describe_export(strategy, rows, params, allocation, router, _provenance(project, strategy, lock))
    about = tables["prompts"], tables["dataset"], counts, teachers, cleaning
    return rows, partial(build_card, strategy, *about, sections)


def _teachers(params: dict[str, Any], strategy: str) -> "dict[str, Teacher]":
    from persyn.errors import InputError, check_keys, nearest
    from persyn.generation import Teacher
    from persyn.models import Student

    for section in ("prompts", "quality", "rewards", "strategies", "student", "teachers"):
        if not isinstance(params.get(section), dict):
            raise InputError(f"{section} in params.yaml must be keys and their values, got {params.get(section)!r}")
    if not isinstance(params["strategies"].get(strategy), dict):
        raise InputError(f"--strategy {strategy!r} is not in params.yaml{nearest(strategy, params['strategies'])}")
    check_keys("student", params["student"], Student)
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
    from persyn.errors import InputError

    if found is None:
        raise InputError(f"{path} of {project.name} is not there; run `dvc repro` (or `dvc pull`) to make it")
    return found


def _gate(params: dict[str, Any], teachers: "dict[str, Teacher]", dataset: "pl.DataFrame") -> None:
    from persyn.errors import InputError, check_keys
    from persyn.generation.terms import Licenses, check_terms

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


def _check_lock(
    project: "Project", params: dict[str, Any], lock: dict[str, Any], teachers: "Iterable[str]", strategy: str
) -> None:
    """Every table, metric and parameter that an export rests on is the one that dvc.lock has, as far as it has them."""
    import hashlib
    from functools import cache

    from persyn.errors import InputError
    from persyn.inspection.diff import changed_values

    @cache
    def md5(path: str) -> str | None:
        content = project.read(path)
        return None if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()

    of_teachers = [f"{kind}@{name}" for name in teachers for kind in ("responses", "quality")]
    of_strategy = [f"{kind}@{strategy}" for kind in ("routes", "routed", "dataset")]
    for stage in ["prompts", *of_teachers, "rewards", "router", *of_strategy]:
        entry = (lock.get("stages") or {}).get(stage) or {}
        files = [*(entry.get("deps") or []), *(entry.get("outs") or [])]
        read = {file["path"]: file["md5"] for file in files if file["path"].endswith((".parquet", ".json"))}
        other = [
            path for path, recorded in read.items() if not path.startswith(UNREAD) and md5(path) not in (recorded, None)
        ]
        for path, recorded in (entry.get("params") or {}).get("params.yaml", {}).items():
            now: Any = params
            for key in path.split("."):
                now = now.get(key) if isinstance(now, dict) else None
            other += [f"{path} in params.yaml"] * bool(changed_values({path: recorded}, {path: now}))
        if other:
            raise InputError(
                f"{other[0]} is not what dvc.lock has for the stage {stage}: the tables are of different runs; run "
                f"`dvc repro`, or export a revision (--rev)"
            )


def _provenance(project: "Project", strategy: str, lock: dict[str, Any]) -> dict[str, str | None]:
    """What made the dataset: label -> value. Its md5 where dvc.lock has it, which _check_lock has compared."""
    from importlib.metadata import version

    path = f"data/dataset/{strategy}.parquet"
    outs = ((lock.get("stages") or {}).get(f"dataset@{strategy}") or {}).get("outs") or []
    known = {entry["path"]: entry["md5"] for entry in outs}
    return {
        "PerSyn": version("persyn"),
        "git commit": project.commit,
        "DVC": f"{path} is {known[path]} (md5, dvc.lock)" if path in known else None,
    }

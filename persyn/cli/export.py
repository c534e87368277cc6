"""`persyn export`: a strategy's dataset as a folder that the Hugging Face hub, `datasets` and trainers can read."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import polars as pl

    from persyn.generation import Teacher
    from persyn.project.snapshot import Snapshot


def export(
    strategy: Annotated[str, typer.Option(help="Its name in params.yaml.")] = "persyn",
    out: Annotated[Path | None, typer.Option(help="The folder. Default: exports/<strategy>.")] = None,
    rev: Annotated[str | None, typer.Option(help="A commit, tag or experiment. Default: the workspace.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in the folder.")] = False,
    push: Annotated[str | None, typer.Option(help="Upload it to this dataset on the hub, owner/name.")] = None,
    public: Annotated[bool, typer.Option("--public/--private", help="Who sees what is pushed.")] = False,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Push publicly what terms forbid or leave open: you have permission.")
    ] = False,
) -> None:
    """Write a strategy's dataset and its card as a folder in the form of a Hugging Face dataset.

    `datasets.load_dataset(FOLDER)` and TRL's SFTTrainer read it. Nothing leaves this machine without --push.
    """
    from persyn.errors import InputError
    from persyn.export import against_publishing
    from persyn.export.hub import check_folder, check_push, push_export, write_export
    from persyn.project.snapshot import open_snapshot

    folder = out or Path("exports") / strategy
    check_folder(folder)
    if push:
        check_push(push)
    elif public:
        raise InputError("--public says who sees what is pushed; name the dataset of the hub by --push owner/name")
    with open_snapshot(rev, only=strategy) as snapshot:
        rows, card = _make(snapshot, strategy)
    reasons = against_publishing(rows)
    if push and public and reasons and not accept_terms:
        raise InputError(
            f"not pushed publicly: {'; '.join(reasons)}; push it privately, leave them out, or give --accept-terms "
            f"if you have permission to publish"
        )
    shards, teachers = write_export(rows, card, folder, force), rows["teacher_id"].n_unique()
    typer.echo(
        f"{folder}: {rows.height} rows of {teachers} teacher{'s' * (teachers != 1)} in {shards} parquet "
        f"file{'s' * (shards != 1)}, {rows['reward'].count()} rows with scores; README.md is the card"
    )
    if push:
        typer.echo(f"pushed: {push_export(folder, push, not public)}")


def _make(snapshot: "Snapshot", strategy: str) -> "tuple[pl.DataFrame, Callable[[dict[str, Any]], str]]":
    """EXPORT of a strategy, and the function that writes its card for write_export."""
    from persyn.dataset.card import build_card
    from persyn.export import build_export, describe_export
    from persyn.project.lock import check_lock, provenance

    params = snapshot.params
    teachers = _teachers(params, strategy)
    check_lock(snapshot, strategy)
    tables = _tables(snapshot, strategy)
    _gate(params, teachers, tables["dataset"])
    rows = build_export(**tables, teachers=teachers)
    counts, allocation = (snapshot.need_metric(name, strategy) for name in ("dataset", "allocation"))
    cleaning, router = (snapshot.need_metric(name) for name in ("prompts", "router"))
    sections = describe_export(strategy, rows, params, allocation, router, provenance(snapshot, strategy))
    about = tables["prompts"], tables["dataset"], counts, teachers, cleaning
    return rows, partial(build_card, strategy, *about, sections)


def _teachers(params: "Mapping[str, Any]", strategy: str) -> "dict[str, Teacher]":
    from persyn.errors import InputError, nearest
    from persyn.generation import Teacher
    from persyn.models import Student

    for section in ("prompts", "quality", "rewards", "strategies", "student", "teachers"):
        if not isinstance(params.get(section), dict):
            raise InputError(f"{section} in params.yaml must be keys and their values, got {params.get(section)!r}")
    if not isinstance(params["strategies"].get(strategy), dict):
        raise InputError(f"--strategy {strategy!r} is not in params.yaml{nearest(strategy, params['strategies'])}")
    Student.parse(params["student"], "student")
    return {name: Teacher.parse(entry, f"teachers.{name}") for name, entry in params["teachers"].items()}


def _tables(snapshot: "Snapshot", strategy: str) -> "dict[str, pl.DataFrame]":
    """The tables that build_export takes, by the names of its arguments."""
    import polars as pl

    from persyn.routed import asked_routes

    routed = snapshot.need("routed", strategy)
    return {
        "prompts": snapshot.need("prompts"),
        "dataset": snapshot.need("dataset", strategy),
        "routes": asked_routes(snapshot.need("routes", strategy), routed),
        "routed": routed,
        "parallel": pl.concat(snapshot.need("responses", name) for name in snapshot.teachers),
        "rewards": snapshot.need("rewards"),
    }


def _gate(params: "Mapping[str, Any]", teachers: "dict[str, Teacher]", dataset: "pl.DataFrame") -> None:
    from persyn.errors import InputError
    from persyn.generation.terms import Licenses, check_terms

    licenses = Licenses.parse(params.get("licenses"), "licenses")
    names = dataset["teacher"].unique().sort().to_list()
    unknown = [name for name in names if name not in teachers]
    if unknown:
        raise InputError(
            f"the dataset holds responses of {', '.join(unknown)}, which params.yaml does not name; run `dvc repro`"
        )
    check_terms({name: teachers[name] for name in names}, licenses)

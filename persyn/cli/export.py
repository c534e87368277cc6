"""`persyn export`: a strategy's dataset, or preference pairs, as a folder that trainers and the hub can read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from persyn.export.reading import Made
    from persyn.settings import Thinking

Form = Literal["hub", "dpo", "sharegpt", "alpaca", "openai", "jsonl", "parquet"]
PUSHED = ("hub", "dpo")
"""Formats that the hub shows as a dataset."""


def export(
    strategy: Annotated[str | None, typer.Option(help="Its name in params.yaml. Default: persyn.")] = None,
    form: Annotated[
        Form, typer.Option("--format", help="hub: for datasets and TRL. dpo: preference pairs of the parallel set.")
    ] = "hub",
    out: Annotated[Path | None, typer.Option(help="The folder. Default: exports/<strategy>[-<format>].")] = None,
    rev: Annotated[str | None, typer.Option(help="A commit, tag or experiment. Default: the workspace.")] = None,
    thinking: Annotated[
        Literal["none", "keep"] | None,
        typer.Option(help="Whether messages hold the teachers' thoughts. Default: student.thinking."),
    ] = None,
    pairs: Annotated[
        Literal["best-worst", "all"] | None,
        typer.Option(help="dpo: of each prompt the pair of the widest margin (default), or all."),
    ] = None,
    min_margin: Annotated[
        float | None, typer.Option(min=0, help="dpo: rewards that differ by this much or less make no pair.")
    ] = None,
    same_length: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="dpo: lengths in tokens differ by at most this share of the longer."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in the folder.")] = False,
    push: Annotated[str | None, typer.Option(help="Upload it to this dataset on the hub, owner/name.")] = None,
    public: Annotated[bool, typer.Option("--public/--private", help="Who sees what is pushed.")] = False,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Push publicly what terms forbid or leave open: you have permission.")
    ] = False,
) -> None:
    """Write a strategy's dataset, or preference pairs, and a card as a folder that trainers read.

    `datasets.load_dataset(FOLDER)` reads every format. Nothing leaves this machine without --push.
    """
    from persyn.errors import InputError
    from persyn.export import against_publishing
    from persyn.export.folder import check_folder
    from persyn.export.hub import check_push, push_export

    rules = {"pairs": pairs, "min_margin": min_margin, "same_length": same_length}
    given = {name: value for name, value in rules.items() if value is not None}
    _check_options(form, strategy, list(given))
    name = strategy or "persyn"
    folder = out or Path("exports") / {"hub": name, "dpo": "dpo"}.get(form, f"{name}-{form}")
    check_folder(folder)
    if push:
        if form not in PUSHED:
            raise InputError(f"--push takes --format {' or '.join(PUSHED)}, got {form}")
        check_push(push)
    elif public:
        raise InputError("--public says who sees what is pushed; name the dataset of the hub by --push owner/name")
    made = _read(form, name, rev, thinking, given)
    reasons = against_publishing(made.used)
    if push and public and reasons and not accept_terms:
        raise InputError(
            f"not pushed publicly: {'; '.join(reasons)}; push it privately, leave them out, or give --accept-terms "
            f"if you have permission to publish"
        )
    typer.echo(f"{folder}: {_write(made, form, folder, force)}; README.md is the card")
    for line in made.told:
        typer.echo(f"  {line}")
    if push:
        typer.echo(f"pushed: {push_export(folder, push, not public)}")


def _check_options(form: str, strategy: str | None, rules: list[str]) -> None:
    """Refuse options that the format would ignore."""
    from persyn.errors import InputError

    if form == "dpo" and strategy is not None:
        raise InputError(
            f"--strategy {strategy} has no meaning for --format dpo, which pairs the responses of all teachers to the "
            f"parallel set; leave it out"
        )
    if form != "dpo" and rules:
        option = f"--{rules[0].replace('_', '-')}"
        raise InputError(f"{option} chooses preference pairs; give --format dpo with it, got {form}")


def _read(form: str, strategy: str, rev: str | None, thinking: "Thinking | None", rules: "Mapping[str, Any]") -> "Made":
    from persyn.export.preferences import PairRules
    from persyn.export.reading import read_pairs, read_rows
    from persyn.project.snapshot import open_snapshot

    if form == "dpo":
        with open_snapshot(rev) as snapshot:
            return read_pairs(snapshot, PairRules(**rules), thinking)
    with open_snapshot(rev, only=strategy) as snapshot:
        return read_rows(snapshot, strategy, form, thinking)


def _write(made: "Made", form: str, folder: Path, force: bool) -> str:
    """Write it; returns what was written, in words."""
    from persyn.dataset.mix import MIX
    from persyn.export.formats import FORMATS, write_parquet, write_records
    from persyn.export.hub import write_export

    names = made.used["teacher_id"].unique().to_list()
    teachers = sum(not name.startswith(MIX) for name in names)
    mixes = f" and {len(names) - teachers} mixed in" if teachers < len(names) else ""
    of = f"of {teachers} teacher{'s' * (teachers != 1)}{mixes}"
    if form in PUSHED:
        shards = write_export(made.rows, made.card, folder, force)
        files = f"in {shards} parquet file{'s' * (shards != 1)}"
        if form == "dpo":
            return f"{made.rows.height} pairs {of} {files}"
        return f"{made.rows.height} rows {of} {files}, {made.rows['reward'].count()} rows with scores"
    if made.converted:
        rows = write_records(made.converted, FORMATS[form], made.card, folder, force)
    else:
        rows = write_parquet(made.rows, made.card, folder, force)
    return f"{rows} rows {of} as {form}"

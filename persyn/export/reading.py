"""Reading: what an export is made of, from a project, and the card that goes with it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import polars as pl

from persyn.dataset import DatasetSettings
from persyn.dataset.card import build_card, cleaning_lines, compose_card, count_origins, reasons
from persyn.dataset.mix import is_mix
from persyn.defects import Policies
from persyn.errors import InputError, nearest
from persyn.export import (
    CITATION,
    COLUMNS,
    build_export,
    bullets,
    columns_table,
    describe_export,
    limit_lines,
    provenance_lines,
    score_lines,
)
from persyn.export import preferences as pairs_of
from persyn.export.folder import Card
from persyn.export.formats import EXTRA, FORMATS, Converted, converted, notes
from persyn.export.preferences import SIDES, PairRules, build_preferences, used_responses
from persyn.export.thoughts import with_thoughts
from persyn.files import markdown_text
from persyn.generation import Teacher
from persyn.generation.terms import Licenses, check_terms
from persyn.models import Student
from persyn.project.lock import check_lock, provenance
from persyn.project.snapshot import Snapshot
from persyn.routed import asked_routes
from persyn.settings import Thinking


@dataclass(frozen=True)
class Made:
    """What is written to a folder."""

    rows: pl.DataFrame
    """EXPORT, or the pairs."""
    used: pl.DataFrame
    """The responses in it, with teacher_id, training, license and source."""
    card: Card
    told: list[str]
    """What the user must know of it, a line each."""
    converted: Converted | None = None
    """The rows in a form other than a table."""


def read_rows(snapshot: Snapshot, strategy: str, form: str, thinking: Thinking | None) -> Made:
    """A strategy's dataset.

    Args:
        form: one of FORMATS.
        thinking: whether the messages hold thoughts; None: as `student.thinking` says, if the format can hold them.

    Raises:
        InputError: the project lacks something, its parts are from different runs, or the format holds no thoughts, or
            none of the rows.
    """
    params, chosen = snapshot.params, FORMATS[form]
    teachers, student = _parse(params, strategy)
    if chosen.thoughts is None and thinking == "keep":
        raise InputError(f"--format {form} has no place for thoughts; leave out --thinking, or choose another format")
    kept: Thinking = (thinking or student.thinking) if chosen.thoughts else "none"
    check_lock(snapshot, strategy)
    tables = _tables(snapshot, strategy)
    _gate(params, teachers, tables["dataset"])
    export = build_export(**tables, teachers=teachers, mixes=DatasetSettings(**params.get("dataset") or {}).mix)
    made = converted(export, form, kept)
    told = notes(export, made, form, kept)
    rows = with_thoughts(export) if kept == "keep" else export
    counts, allocation = (snapshot.need_metric(name, strategy) for name in ("dataset", "allocation"))
    cleaning, router = (snapshot.need_metric(name) for name in ("prompts", "router"))
    sections = describe_export(strategy, rows, params, allocation, router, provenance(snapshot, strategy))
    if form != "hub":
        sections |= _of_format(form, told)
    about = count_origins(tables["prompts"], tables["dataset"]), counts, teachers, cleaning
    card = partial(build_card, strategy, *about, sections)
    return Made(rows, export, card, told, made if chosen.convert else None)


def _of_format(form: str, told: list[str]) -> dict[str, str]:
    """The sections of a card that differ by format."""
    chosen = FORMATS[form]
    first = [f"{chosen.says}.", bullets([f"{line}." for line in told])] if told else [f"{chosen.says}."]
    made = {"Load and train": "\n\n".join([*first, chosen.load])}
    if chosen.columns:
        meanings = {name: meaning for name, (_, meaning) in COLUMNS.items()}
        beside = {name: meanings[name] for name in (*EXTRA, "reasoning")}
        lines = [f"{name}: {meaning}" for name, meaning in (dict(chosen.columns) | beside).items()]
        made["Columns"] = bullets(f"{line.replace('{', '(').replace('}', ')')}." for line in lines)
    return made


def read_pairs(snapshot: Snapshot, rules: PairRules, thinking: Thinking | None) -> Made:
    """Preference pairs of the parallel set.

    Args:
        thinking: as read_rows takes it, before that of `rules`.

    Raises:
        InputError: the project lacks something, its parts are from different runs, or no pair is left.
    """
    params = snapshot.params
    teachers, student = _parse(params)
    kept: Thinking = thinking or student.thinking
    check_lock(snapshot, None)
    prompts, parallel = snapshot.need("prompts"), _of_teachers(snapshot, "responses")
    learned = _of_teachers(snapshot, "learnability")
    rows, counts = build_preferences(
        prompts,
        parallel,
        snapshot.need("rewards"),
        learned,
        teachers,
        replace(rules, thinking=kept),
        DatasetSettings(**params.get("dataset") or {}).over(Policies(**params.get("defects") or {})),
        Licenses.parse(params.get("licenses"), "licenses"),
    )
    used = used_responses(rows)
    told = _pairs_told(rows, counts, kept)
    scored = f"{used.height} of {parallel.height} responses of the parallel set are in a pair."
    sections = {
        "Provenance": bullets(
            [
                *provenance_lines(provenance(snapshot, None)),
                f"Weight of learnability in the reward, alpha: {markdown_text(params['rewards'].get('alpha'))}.",
            ]
        ),
        "Pairs": bullets(f"{markdown_text(line)}." for line in [*_rule_lines(rules), *told]),
        "Scores": bullets([*score_lines(params), scored]),
        "Limits": bullets(limit_lines(used)),
        "Load and train": pairs_of.LOAD,
        "Columns": columns_table(rows.schema, {name: meaning for name, (_, meaning) in pairs_of.COLUMNS.items()}),
        "Citation": CITATION,
    }
    opening = "Synthetic preference pairs: both responses of each were written by a language model."
    made = [
        f"- Pairs: {counts['pairs']} of two teachers with rewards on a parallel prompt, {counts['kept']} kept; "
        f"dropped: {reasons(counts['dropped'])}.",
        *cleaning_lines(snapshot.need_metric("prompts")),
    ]
    card = partial(compose_card, "preferences", opening, made, count_origins(prompts, used), teachers, sections)
    return Made(rows, used, card, told)


def _of_teachers(snapshot: Snapshot, part: str) -> pl.DataFrame:
    return pl.concat(snapshot.need(part, name) for name in snapshot.teachers)


def _rule_lines(rules: PairRules) -> list[str]:
    """How pairs were chosen."""
    which = {"best-worst": "of each prompt the pair of the widest margin", "all": "all pairs of each prompt"}
    lines = [
        f"Which: {which[rules.pairs]}",
        f"Margin: above {rules.min_margin:g} in reward",
        "A response with a defect that params.yaml drops or penalises is never chosen; it may be rejected",
    ]
    if rules.same_length is not None:
        lines.append(f"Lengths in tokens differ by at most {rules.same_length:.0%} of the longer")
    return lines


def _pairs_told(rows: pl.DataFrame, counts: Mapping[str, Any], thinking: Thinking) -> list[str]:
    """What the user must know of the pairs."""
    dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(counts["dropped"].items()))
    told = [f"{counts['pairs'] - counts['kept']} of {counts['pairs']} pairs dropped: {dropped}"] if dropped else []
    if thoughts := sum(rows[f"{side}_reasoning"].count() for side in SIDES):
        into = FORMATS["hub"].thoughts if thinking == "keep" else "in columns only, so that no model learns it"
        told.append(f"{thoughts} of {2 * rows.height} responses have a thought; it is {into}")
    cut = {side: rows.filter(pl.col(f"{side}_finish_reason") == "length").height for side in SIDES}
    told += [f"{count} {side} responses were cut (finish_reason length)" for side, count in cut.items() if count]
    longer = rows.filter(pl.col("chosen_tokens") > pl.col("rejected_tokens")).height
    told.append(f"the chosen response is the longer one in {longer} of {rows.height} pairs")
    return told


def _parse(params: Mapping[str, Any], strategy: str | None = None) -> tuple[dict[str, Teacher], Student]:
    for section in ("prompts", "quality", "rewards", "strategies", "student", "teachers"):
        if not isinstance(params.get(section), dict):
            raise InputError(f"{section} in params.yaml must be keys and their values, got {params.get(section)!r}")
    if strategy is not None and not isinstance(params["strategies"].get(strategy), dict):
        raise InputError(f"--strategy {strategy!r} is not in params.yaml{nearest(strategy, params['strategies'])}")
    student = Student.parse(params["student"], "student")
    return {name: Teacher.parse(entry, f"teachers.{name}") for name, entry in params["teachers"].items()}, student


def _tables(snapshot: Snapshot, strategy: str) -> dict[str, pl.DataFrame]:
    """The tables that build_export takes, by the names of its arguments."""
    routed = snapshot.need("routed", strategy)
    return {
        "prompts": snapshot.need("prompts"),
        "dataset": snapshot.need("dataset", strategy),
        "routes": asked_routes(snapshot.need("routes", strategy), routed),
        "routed": routed,
        "parallel": _of_teachers(snapshot, "responses"),
        "rewards": snapshot.need("rewards"),
    }


def _gate(params: Mapping[str, Any], teachers: Mapping[str, Teacher], dataset: pl.DataFrame) -> None:
    """Refuse a dataset of teachers that params.yaml no longer has, or whose terms forbid training."""
    licenses = Licenses.parse(params.get("licenses"), "licenses")
    names = dataset.filter(~is_mix())["teacher"].unique().sort().to_list()
    unknown = [name for name in names if name not in teachers]
    if unknown:
        raise InputError(
            f"the dataset holds responses of {', '.join(unknown)}, which params.yaml does not name; run `dvc repro`"
        )
    check_terms({name: teachers[name] for name in names}, licenses)

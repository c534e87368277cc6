"""Dataset: routed responses -> what the student is trained on, in TRL's prompt-completion form."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from persyn.dataset.card import shown as public
from persyn.dataset.mix import MixSource, lot
from persyn.defects import Policies, Policy, best_samples, count_defects, drop_reason, falls_short, find_defects
from persyn.errors import InputError
from persyn.generation import Teacher
from persyn.generation.terms import Licenses, check_terms
from persyn.messages import as_messages, assistant_message
from persyn.schemas import DATASET, NEXT, RESPONSES, Domain, fill_table, row_key
from persyn.settings import Misfit, Seed, Settings, shown

logger = logging.getLogger(__name__)
KEYS = ["prompt_id", "teacher"]
Score = Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]
"""PROMPTS and RESPONSES -> QUALITY."""


class DatasetSettings(Settings):
    """The section `dataset`."""

    later: ClassVar = frozenset({"mix", "max_per_teacher", "max_per_source", "seed"})

    keep_length: bool | None = None
    """The earlier name of defects.length, still read: true is `keep`, false is `drop`. Set defects.length instead."""
    require: dict[Domain, float] = Field(default_factory=dict)
    """Domain -> least quality of a response to train on, in the scale of its method in quality.methods (math_verify,
    unit_tests and checkers: 1 is all right). Others, and those without a score, are dropped (`require`). Domains that
    are not named are not checked."""
    retries: Annotated[int, Field(ge=0)] = 0
    """How many more teachers may be asked for a prompt none of whose responses reaches `require` and is fit to train on
    (rejection sampling): the next ones by the router's strengths for it, one after the other, within the budget. Of
    rules that choose each prompt's best response, the next best; of others without strengths, the teachers of the next
    highest mean reward on the parallel set."""
    max_per_teacher: Annotated[int, Field(ge=1)] | None = None
    """Most routed rows of one teacher; `seed` and the content decide which stay. null sets no limit."""
    max_per_source: Annotated[int, Field(ge=1)] | None = None
    """Most routed rows whose prompts are of one source, after `max_per_teacher`; as there."""
    mix: list[MixSource] = Field(default_factory=list)
    """Existing data sets whose rows are joined to the routed ones, in this order. No row has a prompt that is there
    already, or repeats an item of prompts.decontaminate."""
    seed: Seed = 0
    """Seed of the choice of rows for `mix`, `max_per_teacher` and `max_per_source`."""

    @model_validator(mode="after")
    def _one_name_each(self) -> Self:
        titles = [public(mix.title) for mix in self.mix]  # as exports name them: of a local path the last part alone
        if twice := next((title for title in titles if titles.count(title) > 1), None):
            raise Misfit("mix", f"has two entries called {twice!r}; give them a `label` each")
        return self

    @model_validator(mode="after")
    def _retries_what_is_required(self) -> Self:
        if self.retries and not self.require:
            raise Misfit(
                "retries", f"is {self.retries}, but require names no domain, so nothing can fail; name one in require"
            )
        return self

    @property
    def limits(self) -> dict[str, int]:
        """Column -> most rows with the same value, in the order in which they are applied."""
        limits = {"teacher": self.max_per_teacher, "source": self.max_per_source}
        return {column: limit for column, limit in limits.items() if limit is not None}

    def over(self, policies: Policies) -> Policies:
        """The policies that hold: a given keep_length decides what happens to cut responses.

        Raises:
            ValueError: defects.length is given too, and says otherwise.
        """
        if self.keep_length is None:
            return policies
        length: Policy = "keep" if self.keep_length else "drop"
        if "length" in policies.model_fields_set and policies.length != length:
            said = shown(self.keep_length)
            raise Misfit(
                "keep_length",
                f"is {said}, but defects.length is {policies.length}; remove keep_length, its earlier name",
            )
        return policies.changed(length=length)


def build_dataset(
    prompts: pl.DataFrame,
    routed: pl.DataFrame,
    policies: Policies,
    teachers: Mapping[str, Teacher],
    licenses: Licenses,
    settings: DatasetSettings,
    routes: pl.DataFrame | None = None,
    score: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Join prompts with their routed responses; drop responses that are unfit to train on.

    Args:
        prompts: PROMPTS.
        routed: RESPONSES, one row a prompt, or several where it had two teachers or others were asked again; with all
            samples of a teacher.
        policies: which defects keep a response out.
        teachers: all of them, by name. Every row gets its teacher's terms.
        licenses: checked for the teachers in `routed`, before anything is scored.
        routes: ROUTES of `routed`; needed, as `score` is, where a prompt had several teachers.
        score: RESPONSES -> QUALITY; needed where a prompt had several responses, or its domain is in settings.require.
            Of two fit responses the better is kept; if equal, the stronger teacher's. Those of the chosen teachers go
            before those of the teachers asked after them, which go in that order.

    Returns:
        DATASET, and the counts {rows, kept, dropped: {reason: count}, teachers: count_defects}. The reason is that of
        drop_reason, `sample` for samples that are not the best (best_samples), `require` for those that fall short of
        settings.require, `second` for the worse of two, or `max_per_teacher` or `max_per_source`. Where something is
        required, require: as count_required.

    Raises:
        InputError: no row is left, or as check_terms.
    """
    check_terms({name: teachers[name] for name in routed["teacher"].unique().sort()}, licenses)
    scored = None if score is None else lambda _, responses: score(responses)
    building = Building(policies, teachers, settings, scored)
    fit = building.add(prompts, routed, routes)
    kept = fit.filter(building.stays())
    return kept, building.counts()


class Building:
    """Makes a dataset of prompts that come in parts, with all that belongs to them, by the rules of build_dataset. Of
    the parts before it keeps counts and, where rows of a teacher or a source may be too many, the keys of the rows.
    """

    def __init__(
        self, policies: Policies, teachers: Mapping[str, Teacher], settings: DatasetSettings, score: Score | None
    ) -> None:
        """
        Args:
            policies, teachers, settings: as build_dataset takes them.
            score: PROMPTS and RESPONSES -> QUALITY; needed where that of build_dataset is.
        """
        self._policies, self._teachers = settings.over(policies), teachers
        self._settings, self._score = settings, score
        self._rows = self._kept = 0
        self._dropped, self._defects = Counter[str](), dict[str, Counter[str]]()
        self._required, self._keys = Counter[str](), list[pl.DataFrame]()

    def add(self, prompts: pl.DataFrame, routed: pl.DataFrame, routes: pl.DataFrame | None) -> pl.DataFrame:
        """DATASET of one part: the rows that are fit, of which stays() may leave some."""
        settings = self._settings
        routed = fill_table(routed, RESPONSES)
        rows = self._with_reasons(prompts, routed)
        twice = rows.filter(pl.col("dropped").is_null()).filter(pl.col("prompt_id").is_duplicated())
        if twice.height:
            worse = _worse(twice, routes).with_columns(second=pl.lit("second"))
            rows = rows.join(worse, on=KEYS, how="left", validate="1:1", maintain_order="left")
            rows = rows.with_columns(dropped=pl.coalesce("dropped", "second"))
        self._rows += routed.height
        self._dropped.update(rows["dropped"].drop_nulls())
        self._dropped["sample"] += routed.height - rows.height
        if settings.require:
            self._required.update(count_required(rows, routes, settings))
        kept = rows.filter(pl.col("dropped").is_null())
        self._kept += kept.height
        if settings.limits:
            self._keys.append(kept.select(*KEYS, "source"))
        return _messages_and_terms(kept, self._teachers)

    def _with_reasons(self, prompts: pl.DataFrame, routed: pl.DataFrame) -> pl.DataFrame:
        """The best sample of each response with its prompt, sorted, and `dropped`: null, or why it is unfit or falls
        short.
        """
        defects = find_defects(prompts, routed)
        for name, found in count_defects(defects, routed).items():
            self._defects.setdefault(name, Counter()).update(found)
        rows = routed.join(prompts, on="prompt_id", how="left", validate="m:1")
        key = row_key(routed)
        rows = rows.join(defects, on=key, how="left", validate="1:1").sort(key)
        rows = rows.with_columns(dropped=drop_reason(self._policies))
        rows = _with_quality(rows, prompts, routed.columns, self._settings.require, self._score)
        rows = best_samples(rows.with_columns(unfit=pl.col("dropped").is_not_null()))
        short = pl.when(falls_short(self._settings.require)).then(pl.lit("require"))
        return rows.with_columns(dropped=pl.coalesce("dropped", short))

    def stays(self) -> pl.Series:
        """Of every row that add() gave, in order, whether it stays: not too many of its teacher or its source."""
        if not self._settings.limits:
            return pl.repeat(True, self._kept, dtype=pl.Boolean, eager=True)
        rows = pl.concat(self._keys) if self._keys else pl.DataFrame(schema=[*KEYS, "source"])
        dropped = _too_many(rows, self._settings)
        self._dropped.update(dropped.drop_nulls())
        self._kept = dropped.null_count()
        return dropped.is_null()

    def counts(self) -> dict[str, Any]:
        """As build_dataset returns them; once all parts came and stays() was called.

        Raises:
            InputError: no row is left.
        """
        dropped = {reason: self._dropped[reason] for reason in sorted(self._dropped) if self._dropped[reason]}
        if not self._kept:
            others = {reason: count for reason, count in dropped.items() if reason != "sample"}
            raise InputError(
                f"no response is fit to train on (dropped: {others}); raise sampling.max_tokens of the teachers, "
                f"or set defects.length: keep" + (", or lower dataset.require" if "require" in dropped else "")
            )
        defects = {name: dict(found) for name, found in sorted(self._defects.items())}
        counts: dict[str, Any] = {"rows": self._rows, "kept": self._kept, "dropped": dropped, "teachers": defects}
        if self._settings.require:
            counts["require"] = {"least": dict(self._settings.require), **self._required}
            _tell(counts)
        return counts


def count_required(rows: pl.DataFrame, routes: pl.DataFrame | None, settings: DatasetSettings) -> dict[str, int]:
    """What became of the prompts whose domain is in settings.require.

    Args:
        rows: prompt_id, teacher, domain and dropped (null: kept) of every response; of samples the best.
        routes: ROUTES; None: every teacher in `rows` was chosen.

    Returns:
        prompts: how many; at_once: with a response of a chosen teacher in the dataset;
        retried: with one of a teacher asked after that; dropped: with none; unretried: of these, the prompts for which
        settings.retries leaves teachers that were not asked, since the budget was spent.
    """
    rows = rows.filter(pl.col("domain").cast(pl.String).is_in(list(settings.require)))
    rows = _with_turn(rows, routes)
    of_prompts = rows.group_by("prompt_id").agg(
        kept=pl.col("turn").filter(pl.col("dropped").is_null()).min(),
        asked=(pl.col("turn") > 0).sum(),
        more=pl.col("more").max(),
    )
    lost = of_prompts.filter(pl.col("kept").is_null())
    allowed = pl.min_horizontal(pl.col("more"), settings.retries)
    return {
        "prompts": of_prompts.height,
        "at_once": of_prompts.filter(pl.col("kept") == 0).height,
        "retried": of_prompts.filter(pl.col("kept") > 0).height,
        "dropped": lost.height,
        "unretried": lost.filter(pl.col("asked") < allowed).height,
    }


def _tell(counts: Mapping[str, Any]) -> None:
    found, dropped = counts["require"], ", ".join(f"{reason} {n}" for reason, n in sorted(counts["dropped"].items()))
    logger.info(
        "%d of %d responses are kept; dropped: %s. Of %d prompts in domains with a required quality, %d have it at "
        "once, %d from a teacher asked later, %d are left out",
        *(counts["kept"], counts["rows"], dropped or "none"),
        *(found[name] for name in ("prompts", "at_once", "retried", "dropped")),
    )
    if found["unretried"]:
        logger.warning(
            "%d prompts that are left out were not asked again as often as dataset.retries allows: the budget was "
            "spent; raise budget.max_tokens, run `dvc repro -sf routed@<strategy>`, then `dvc repro`",
            found["unretried"],
        )


def _with_quality(
    rows: pl.DataFrame,
    prompts: pl.DataFrame,
    columns: list[str],
    require: Mapping[Domain, float],
    score: Score | None,
) -> pl.DataFrame:
    """`rows` with their quality where it decides: it is required, or several responses to a prompt are fit; else null.

    Args:
        columns: those of RESPONSES.
    """
    required = pl.col("domain").cast(pl.String).is_in(list(require))
    several = pl.col("prompt_id").is_duplicated()
    decides = rows.filter(pl.col("dropped").is_null()).filter(required | several).select(columns)
    if decides.is_empty():
        return rows.with_columns(quality=pl.lit(None, pl.Float64))
    if score is None:
        raise InputError(
            f"{decides['prompt_id'].n_unique()} prompts have several responses; give their routes and a score"
        )
    return rows.join(score(prompts, decides), on=row_key(decides), how="left", validate="1:1", maintain_order="left")


def _too_many(rows: pl.DataFrame, settings: DatasetSettings) -> pl.Series:
    """Of each row (prompt_id, teacher and source) null, or why it is dropped: too many of its teacher, and then of its
    source.
    """
    # The first 64 bits of the lots order them as well.
    lots = (int(lot(settings.seed, *key)[:16], 16) for key in rows.select(KEYS).iter_rows())
    rows = rows.drop("prompt_id").with_columns(lot=pl.Series(np.fromiter(lots, np.uint64, rows.height)))
    rows = rows.with_columns(dropped=pl.lit(None, pl.String))
    for column, limit in settings.limits.items():
        place = pl.col("lot").rank("ordinal").over(column, pl.col("dropped").is_null())
        over = pl.col("dropped").is_null() & (place > limit)
        rows = rows.with_columns(dropped=pl.when(over).then(pl.lit(f"max_per_{column}")).otherwise("dropped"))
    return rows["dropped"]


def _messages_and_terms(kept: pl.DataFrame, teachers: Mapping[str, Teacher]) -> pl.DataFrame:
    """DATASET of the kept responses."""
    given = [teachers[name] for name in kept["teacher"]]
    series = [
        pl.Series("prompt", [as_messages(prompt) for prompt in kept["prompt"].to_list()], dtype=DATASET["prompt"]),
        pl.Series("completion", [assistant_message(text) for text in kept["response"]], dtype=DATASET["completion"]),
        kept["reasoning"],
        kept["finish_reason"].cast(pl.String),
        pl.Series("teacher_license", [teacher.license for teacher in given], dtype=pl.String),
        pl.Series("training", [teacher.training for teacher in given], dtype=pl.String),
    ]
    return kept.select("prompt_id", "teacher", "license").hstack(series).select(DATASET.names())


def _worse(twice: pl.DataFrame, routes: pl.DataFrame | None) -> pl.DataFrame:
    """prompt_id and teacher of every response but the best of its prompt. One without a score ranks last."""
    if routes is None:
        raise InputError(
            f"{twice['prompt_id'].n_unique()} prompts have several responses; give their routes and a score"
        )
    known = _with_turn(twice, routes).with_columns(pl.col("quality").fill_null(-float("inf")))
    order = known.sort("turn", "quality", "strength", "teacher", descending=[False, True, True, False])
    return order.filter(~pl.col("prompt_id").is_first_distinct()).select(KEYS)


def _with_turn(rows: pl.DataFrame, routes: pl.DataFrame | None) -> pl.DataFrame:
    """`rows` with strength (nullable), turn (0 for a chosen teacher, else its place among the next ones) and more (how
    many next ones the prompt has).
    """
    if routes is None:
        return rows.with_columns(strength=pl.lit(None, pl.Float64), turn=0, more=0)
    if "next" not in routes.columns:
        routes = routes.with_columns(next=pl.lit([], NEXT))
    later = routes.unique("prompt_id").select("prompt_id", "next", more=pl.col("next").list.len().cast(pl.Int64))
    chosen = routes.select(*KEYS, "strength", chosen=pl.lit(value=True))
    rows = rows.join(chosen, on=KEYS, how="left", validate="m:1", maintain_order="left")
    rows = rows.join(later, on="prompt_id", how="left", validate="m:1", maintain_order="left")
    places = [
        0 if chosen else (names.index(name) + 1 if name in names else len(names) + 1)
        for chosen, name, names in rows.select("chosen", "teacher", pl.col("next").fill_null([])).iter_rows()
    ]
    return rows.with_columns(turn=pl.Series(places, dtype=pl.Int64)).drop("next", "chosen")

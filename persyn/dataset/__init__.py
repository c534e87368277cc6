"""Dataset: routed responses -> what the student is trained on, in TRL's prompt-completion form."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from persyn.defects import Policies, Policy, best_samples, count_defects, find_defects
from persyn.errors import InputError
from persyn.generation import Teacher
from persyn.generation.terms import Licenses, check_terms
from persyn.messages import as_messages, assistant_message
from persyn.schemas import DATASET, RESPONSES, fill_table, row_key
from persyn.settings import Misfit, Settings, shown


class DatasetSettings(Settings):
    """The section `dataset`."""

    keep_length: bool | None = None
    """The earlier name of defects.length, still read: true is `keep`, false is `drop`. Set defects.length instead."""

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
        routed: RESPONSES, one row a prompt, or two where it had two teachers; with all samples of a teacher.
        policies: which defects keep a response out.
        teachers: all of them, by name. Every row gets its teacher's terms.
        licenses: checked for the teachers in `routed`, before anything is scored.
        routes: ROUTES of `routed`; needed, as `score` is, where a prompt had two teachers.
        score: RESPONSES -> QUALITY. Of two fit responses the better is kept; if equal, the stronger teacher's.

    Returns:
        DATASET, and the counts {rows, kept, dropped: {reason: count}, teachers: count_defects}. The reason is that of
        drop_reason, `sample` for samples that are not the best (best_samples), or `second` for the worse of two.

    Raises:
        InputError: no row is left, or as check_terms.
    """
    check_terms({name: teachers[name] for name in routed["teacher"].unique().sort()}, licenses)
    defects = find_defects(prompts, routed)
    routed = fill_table(routed, RESPONSES)
    rows = routed.join(prompts, on="prompt_id", how="left", validate="m:1")
    key = row_key(routed)
    rows = rows.join(defects, on=key, how="left", validate="1:1").sort(key)
    rows = rows.with_columns(dropped=drop_reason(settings.over(policies)))
    if "sample" in key:
        rows = _without_other_samples(rows, routed.columns, score)
    twice = rows.filter(pl.col("dropped").is_null()).filter(pl.col("prompt_id").is_duplicated())
    if twice.height:
        worse = _worse(twice.select(RESPONSES.names()), routes, score).with_columns(second=pl.lit("second"))
        rows = rows.join(worse, on=["prompt_id", "teacher"], how="left", validate="1:1", maintain_order="left")
        rows = rows.with_columns(dropped=pl.coalesce("dropped", "second"))
    kept, dropped = rows.filter(pl.col("dropped").is_null()), Counter(rows["dropped"].drop_nulls().sort())
    if kept.is_empty():
        raise InputError(
            f"no response is fit to train on (dropped: {dict(dropped)}); raise sampling.max_tokens of the teachers, "
            f"or set defects.length: keep"
        )
    if others := routed.height - rows.height:
        dropped["sample"] = others
    counts = {"rows": routed.height, "kept": kept.height, "dropped": dict(dropped)}
    return _messages_and_terms(kept, teachers), counts | {"teachers": count_defects(defects, routed)}


def _without_other_samples(
    rows: pl.DataFrame, columns: list[str], score: Callable[[pl.DataFrame], pl.DataFrame] | None
) -> pl.DataFrame:
    """The best sample of each teacher's response to a prompt. Only where several are fit does quality decide."""
    fit = rows.filter(pl.col("dropped").is_null())
    several = fit.filter(pl.struct("prompt_id", "teacher").is_duplicated()).select(columns)
    if several.height and score is None:
        raise InputError(f"{several['prompt_id'].n_unique()} prompts have several samples; give a score")
    unknown = several.clear().select("prompt_id", "teacher", "sample", quality=pl.lit(None, pl.Float64))
    quality = score(several) if several.height and score else unknown
    rows = rows.join(quality, on=row_key(rows), how="left", validate="1:1")
    return best_samples(rows.with_columns(unfit=pl.col("dropped").is_not_null())).drop("quality")


def drop_reason(policies: Policies) -> pl.Expr:
    """Why a row (columns finish_reason and the other kinds of DEFECTS) is unfit to train on: error, length or a kind of
    defect, the first that applies; null if none does.
    """
    reasons = [
        pl.when(pl.col("finish_reason") == "error").then(pl.lit("error")),
        pl.when((pl.col("finish_reason") == "length") & (policies.length == "drop")).then(pl.lit("length")),
        *(pl.when(kind).then(pl.lit(kind)) for kind in policies.kinds("drop") if kind != "length"),
    ]
    return pl.coalesce(reasons)


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


def _worse(
    twice: pl.DataFrame, routes: pl.DataFrame | None, score: Callable[[pl.DataFrame], pl.DataFrame] | None
) -> pl.DataFrame:
    """prompt_id and teacher of every response but the best of its prompt. One without a score ranks last."""
    keys = ["prompt_id", "teacher"]
    if routes is None or score is None:
        raise InputError(
            f"{twice['prompt_id'].n_unique()} prompts have several responses; give their routes and a score"
        )
    known = twice.select(keys).join(score(twice), on=keys, how="left", validate="1:1")
    known = known.join(routes, on=keys, how="left", validate="1:1").with_columns(
        pl.col("quality").fill_null(-float("inf"))
    )
    order = known.sort("quality", "strength", "teacher", descending=[True, True, False])
    return order.filter(~pl.col("prompt_id").is_first_distinct()).select(keys)

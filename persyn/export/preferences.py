"""Preferences: two responses to one prompt, a better and a worse one, in the form that TRL's DPOTrainer and
RewardTrainer read.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from persyn.dataset import drop_reason
from persyn.dataset.card import shown
from persyn.defects import Policies, find_defects
from persyn.errors import InputError
from persyn.export.thoughts import thought_message
from persyn.generation import Teacher
from persyn.generation.terms import Licenses, check_terms, refused_teachers
from persyn.schemas import MESSAGES
from persyn.settings import Thinking
from persyn.ties import tie_width

KEYS = ["prompt_id", "teacher"]
SIDES = ("chosen", "rejected")
OF_A_SIDE: dict[str, tuple[Any, str]] = {
    "teacher": (pl.String, "which teacher wrote {}"),
    "model": (pl.String, "the model of that teacher"),
    "reward": (pl.Float64, "the reward of {} among the responses to this prompt"),
    "quality": (pl.Float64, "the raw quality of {}"),
    "license": (pl.String, "licence of the teacher that wrote {}"),
    "training": (pl.String, "whether {} may train other models: allowed, conditional, forbidden or unknown"),
    "tokens": (pl.Int64, "tokens of {} that its learnability was scored on, by the student's tokenizer"),
    "finish_reason": (pl.String, "stop, or length where {} was cut"),
    "reasoning": (pl.String, "the thought before {}; null where there is none"),
}
"""What is known about the chosen and about the rejected response -> type and meaning."""
COLUMNS: dict[str, tuple[Any, str]] = {
    "prompt": (MESSAGES, "messages (role, content) that both teachers answered, without their own system prompts"),
    "chosen": (MESSAGES, "the response of the higher reward, as one message"),
    "rejected": (MESSAGES, "the response of the lower reward, as one message"),
    "margin": (pl.Float64, "chosen_reward minus rejected_reward"),
    "prompt_id": (pl.String, "content hash of the prompt"),
    "domain": (pl.String, "instruction, math or code"),
    "source": (pl.String, "where the prompt is from"),
    "license": (pl.String, "licence of the prompt"),
    **{
        f"{side}_{name}": (kind, meaning.format(f"`{side}`"))
        for side in SIDES
        for name, (kind, meaning) in OF_A_SIDE.items()
    },
    "rejected_defect": (pl.String, "a defect of `rejected` that params.yaml drops or penalises; null where none"),
}
"""name -> type and meaning."""


@dataclass(frozen=True)
class PairRules:
    """Which pairs are kept."""

    min_margin: float = 0.0
    """Two rewards that differ by this much or less make no pair."""
    pairs: Literal["best-worst", "all"] = "best-worst"
    """Of each prompt the pair of the widest margin, or all."""
    same_length: float | None = None
    """Lengths in tokens differ by at most this share of the longer one; None: they do not matter."""
    thinking: Thinking = "none"
    """keep: a thought is in the message; none: it is in a column."""


def build_preferences(
    prompts: pl.DataFrame,
    responses: pl.DataFrame,
    rewards: pl.DataFrame,
    learnability: pl.DataFrame,
    teachers: Mapping[str, Teacher],
    rules: PairRules,
    policies: Policies,
    licenses: Licenses,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Pair the responses to each parallel prompt by their rewards.

    A pair needs two teachers whose terms let their outputs train others, or whom licenses.allow_forbidden names. A
    response with a defect that `policies` drops or penalises is never chosen; it may be rejected.

    Args:
        prompts: PROMPTS.
        responses: RESPONSES of all teachers to the parallel set.
        rewards: REWARDS.
        learnability: LEARNABILITY of the same responses.
        teachers: all of them, by name.

    Returns:
        A table of COLUMNS, sorted by prompt and teachers, no text changed; and its counts: {prompts, pairs: of two
        teachers with rewards, kept, dropped: {reason: count}}, each pair under the first reason that applies.

    Raises:
        InputError: the tables are from different runs, or no pair is left.
    """
    rows = _sides(prompts, responses, rewards, learnability, policies)
    pairs = _pairs(rows).with_columns(dropped=_drop_reason(rules, refused_teachers(teachers, licenses)))
    kept = pairs.filter(pl.col("dropped").is_null())
    if rules.pairs == "best-worst":
        order = kept.sort("prompt_id", "margin", "teacher", "teacher_2", descending=[False, True, False, False])
        kept = order.unique("prompt_id", keep="first", maintain_order=True)
    dropped = Counter(pairs["dropped"].drop_nulls().sort())
    if narrower := pairs.height - kept.height - dropped.total():
        dropped["narrower margin"] = narrower
    if kept.is_empty():
        raise InputError(
            f"no pair is left of {pairs.height} (dropped: {dict(dropped)}); lower --min-margin, leave out "
            f"--same-length, or look at data/rewards.parquet: all responses may be scored alike"
        )
    used = sorted({*kept["teacher"], *kept["teacher_2"]})
    check_terms({name: teachers[name] for name in used}, licenses)
    counts = {"prompts": kept["prompt_id"].n_unique(), "pairs": pairs.height, "kept": kept.height}
    table = _table(kept.sort("prompt_id", "teacher", "teacher_2"), prompts, teachers, rules.thinking)
    return table, counts | {"dropped": dict(dropped)}


def used_responses(preferences: pl.DataFrame) -> pl.DataFrame:
    """Every response of the pairs once: its prompt_id, teacher (as teacher_id too), source, terms and finish_reason."""
    sides = (
        preferences.select(
            "prompt_id",
            pl.col(f"{side}_teacher").alias("teacher"),
            pl.col(f"{side}_teacher").alias("teacher_id"),
            "source",
            "license",
            pl.col(f"{side}_license").alias("teacher_license"),
            pl.col(f"{side}_training").alias("training"),
            pl.col(f"{side}_finish_reason").alias("finish_reason"),
        )
        for side in SIDES
    )
    return pl.concat(sides).unique(KEYS, maintain_order=True).sort(KEYS)


def _sides(
    prompts: pl.DataFrame,
    responses: pl.DataFrame,
    rewards: pl.DataFrame,
    learnability: pl.DataFrame,
    policies: Policies,
) -> pl.DataFrame:
    """The responses that have a reward, with all that decides about their pairs."""
    rewarded = rewards.select(*KEYS, "reward", "quality", width=tie_width("reward"))
    known = responses.join(rewards, on=KEYS, how="semi")
    defects = find_defects(prompts, known)
    rows = rewarded.join(known, on=KEYS, how="left", validate="1:1")
    rows = rows.join(learnability.select(*KEYS, "num_tokens", "truncated"), on=KEYS, how="left", validate="1:1")
    lacking = rows.filter(pl.any_horizontal(pl.col("response", "num_tokens").is_null()))
    if lacking.height:
        raise InputError(
            f"{lacking.height} of {rows.height} rewards are of no response (first: {lacking['prompt_id'][0]} of "
            f"{lacking['teacher'][0]}): the tables are from different runs; run `dvc repro`"
        )
    losing = policies.changed(**dict.fromkeys(policies.kinds("penalise"), "drop"))
    rows = rows.join(defects, on=KEYS, how="left", validate="1:1").with_columns(defect=drop_reason(losing))
    names = (
        "reward",
        "quality",
        "width",
        "response",
        "reasoning",
        "finish_reason",
        "num_tokens",
        "truncated",
        "defect",
    )
    return rows.select(*KEYS, *names)


def _pairs(rows: pl.DataFrame) -> pl.DataFrame:
    """Each two teachers of a prompt once, that of the higher reward first (if equal, by name); the other's columns end
    in `_2`.
    """
    both = rows.join(rows, on="prompt_id", suffix="_2", validate="m:m")
    above, equal = pl.col("reward") > pl.col("reward_2"), pl.col("reward") == pl.col("reward_2")
    ordered = both.filter(above | (equal & (pl.col("teacher") < pl.col("teacher_2"))))
    return ordered.with_columns(margin=pl.col("reward") - pl.col("reward_2"))


def _drop_reason(rules: PairRules, refused: list[str]) -> pl.Expr:
    """Why a pair is not kept; null if it is."""
    same = pl.col("response") == pl.col("response_2")
    if rules.thinking == "keep":
        same &= pl.col("reasoning").eq_missing(pl.col("reasoning_2"))
    reasons = {
        "terms of a teacher": pl.any_horizontal(pl.col("teacher", "teacher_2").is_in(refused)),
        "tie": pl.col("margin") <= pl.col("width"),
        "margin": pl.col("margin") <= rules.min_margin + pl.col("width"),
        "defect of the better": pl.col("defect").is_not_null(),
        "same text": same,
    }
    if rules.same_length is not None:
        tokens = pl.col("num_tokens"), pl.col("num_tokens_2")
        apart = (tokens[0] - tokens[1]).abs() > rules.same_length * pl.max_horizontal(*tokens)
        reasons |= {"length unknown": pl.col("truncated") | pl.col("truncated_2"), "length": apart}
    return pl.coalesce([pl.when(holds).then(pl.lit(reason)) for reason, holds in reasons.items()])


def _table(
    kept: pl.DataFrame, prompts: pl.DataFrame, teachers: Mapping[str, Teacher], thinking: Thinking
) -> pl.DataFrame:
    """The kept pairs as a table of COLUMNS."""
    said = thinking == "keep" and any(kept[name].count() for name in ("reasoning", "reasoning_2"))
    asked = prompts.select("prompt_id", "prompt", "domain", "source", "license")
    rows = kept.join(asked, on="prompt_id", how="left", validate="m:1", maintain_order="left")
    made: dict[str, pl.Expr | pl.Series] = {"rejected_defect": pl.col("defect_2")}
    for side, end in zip(SIDES, ("", "_2"), strict=True):
        names = rows[f"teacher{end}"].to_list()
        made |= {
            side: thought_message(rows[f"response{end}"], rows[f"reasoning{end}"] if said else None),
            **{f"{side}_{name}": pl.col(f"{name}{end}") for name in ("teacher", "reward", "quality", "reasoning")},
            f"{side}_tokens": pl.col(f"num_tokens{end}"),
            f"{side}_finish_reason": pl.col(f"finish_reason{end}").cast(pl.String),
            f"{side}_model": pl.Series([shown(teachers[name].model) for name in names], dtype=pl.String),
            f"{side}_license": pl.Series([teachers[name].license for name in names], dtype=pl.String),
            f"{side}_training": pl.Series([teachers[name].training for name in names], dtype=pl.String),
        }
    sources = {name: shown(name) for name in rows["source"].unique()}
    rows = rows.with_columns(pl.col("domain").cast(pl.String), pl.col("source").replace(sources), **made)
    return rows.select(*COLUMNS)


LOAD = """```python
from datasets import load_dataset
from trl import DPOTrainer, RewardTrainer

dataset = load_dataset("owner/name", split="train")  # or the path of this folder
DPOTrainer(model="...", train_dataset=dataset).train()
RewardTrainer(model="...", train_dataset=dataset.remove_columns("margin")).train()
```

Both read `prompt`, `chosen` and `rejected`. RewardTrainer takes the folder as it is too, but then reads `margin` as
well: its loss asks for a gap that is wider by the margin (as in Llama 2). DPOTrainer does not read it.

Axolotl reads the roles and contents of the messages, not their thoughts:

```yaml
rl: dpo
datasets:
  - path: path/to/this/folder
    split: train
    type: chat_template.default
    field_messages: prompt
    field_chosen: chosen
    field_rejected: rejected
```

LLaMA-Factory wants `chosen` and `rejected` as one message each, not as lists of one, so it does not read this form."""

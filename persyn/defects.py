"""Defects: signs in a response that a student should not learn from it."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import polars as pl
from tqdm import tqdm

from persyn.messages import Message, as_messages
from persyn.schemas import DEFECTS, row_key
from persyn.settings import Settings
from persyn.thinking import never_closed

TAIL = 1000
"""A loop is looked for in this many characters at the end of a response."""
WINDOW = 16
"""Characters of the compared windows; a loop of period p has at most p different windows."""
REFUSAL = re.compile(
    r"\W*(?:(?:(?:i'm|i am) (?:\w+ )?sorry|sorry|i apologi[sz]e|unfortunately)\W+)?(?:but\W+)?"
    r"(?:as an? [\w ]{1,60}\W+)?"
    r"i(?: can ?not| can't| won't| will not|(?: am|'m) (?:unable|not able) to| must decline to)(?! wait)(?: \w+){0,2}? "
    r"(?:answer|assist|comply|complete|create|discuss|do|engage|fulfill?|generate|give|help|offer|provide|respond|share|"
    r"support|write)\b",
    re.IGNORECASE,
)
TOOL_CALL = re.compile(
    r"\s*(?:<tool_call>|\[TOOL_CALLS\]|\{\s*\"name\"\s*:.*\"(?:arguments|parameters)\"\s*:)", re.DOTALL
)


def find_defects(prompts: pl.DataFrame, responses: pl.DataFrame) -> pl.DataFrame:
    """Look for every kind of defect in every response (a call that failed, finish_reason `error`, has none).

    Args:
        prompts: PROMPTS.
        responses: RESPONSES, each prompt_id in `prompts`.

    Returns:
        DEFECTS, sorted by prompt_id and teacher (and sample).
    """
    key = row_key(responses)
    rows = responses.join(prompts, on="prompt_id", how="left", validate="m:1").sort(key)
    written = rows.filter(pl.col("finish_reason") != "error")
    found = [
        {name: row[name] for name in key} | detect_defects(row["prompt"], row)
        for row in tqdm(written.iter_rows(named=True), total=written.height, desc="defects", unit="response")
    ]
    return pl.DataFrame(found, schema=DEFECTS if "sample" not in key else {**DEFECTS, "sample": pl.Int64})


def detect_defects(prompt: str | Sequence[Message], row: Mapping[str, Any]) -> dict[str, bool]:
    """Every kind of defect -> whether a row of RESPONSES has it. Of a conversation all turns are read, the last one
    first. The detectors see the answer only, never the thought.

    A response that ended inside its thought is `unclosed_think` and `length`, and not `empty` as well.
    """
    asked = "\n".join(turn["content"] for turn in reversed(as_messages(prompt)))
    found = {kind: bool(detect(asked, row["response"])) for kind, detect in DETECTORS.items()}
    found |= {"length": row["finish_reason"] == "length"}
    if never_closed(row.get("reasoning"), row["response"], row["finish_reason"]):
        found |= {"empty": False, "unclosed_think": True}
    return found


def count_defects(defects: pl.DataFrame, responses: pl.DataFrame) -> dict[str, dict[str, int]]:
    """teacher -> counts {responses, error, length, and each kind of defect}."""
    counts = {}
    for (teacher,), rows in responses.sort("teacher").group_by("teacher", maintain_order=True):
        reasons = Counter(rows["finish_reason"].cast(pl.String))
        kinds = defects.filter(teacher=teacher).select(pl.col(kind).sum() for kind in DETECTORS).row(0, named=True)
        counts[str(teacher)] = {
            "responses": rows.height,
            "error": reasons["error"],
            "length": reasons["length"],
            **kinds,
        }
    return counts


def best_samples(rows: pl.DataFrame) -> pl.DataFrame:
    """Of a teacher's samples for a prompt the best: one that is fit to train on, then that of the highest quality, then
    the first. This is the one place that decides.

    Args:
        rows: as they are, unless they have a column `sample`; then prompt_id, teacher, unfit (bool), quality (nullable)
            and others.

    Returns:
        `rows` without the others and without those columns that only the choice needs, `sample` and `unfit`.
    """
    if "sample" not in rows.columns:
        return rows
    order = ["prompt_id", "teacher", "unfit", "quality", "sample"]
    ranked = rows.sort(order, descending=[False, False, False, True, False], nulls_last=True)
    return ranked.unique(order[:2], keep="first", maintain_order=True).drop("sample", "unfit")


def unfit_responses(defects: pl.DataFrame, policies: "Policies") -> pl.DataFrame:
    """prompt_id and teacher of the responses that the student may not be trained on: each of their samples has a defect
    that is dropped.

    Args:
        defects: DEFECTS.
    """
    dropped = pl.any_horizontal(pl.lit(False), *policies.kinds("drop"))
    rows = defects.group_by("prompt_id", "teacher", maintain_order=True).agg(unfit=dropped.all())
    return rows.filter("unfit").drop("unfit")


Policy = Literal["keep", "penalise", "drop"]


class Policies(Settings):
    """The section `defects`: what happens to a response with a defect of this kind.

    keep: nothing. penalise: on the parallel set the response loses (rewards.penalty), so that prompts like it go
    elsewhere. drop: as penalise, and the student is not trained on it.
    """

    empty: Policy = "drop"
    """Nothing, or nothing but blanks."""
    refusal: Policy = "penalise"
    """Begins by declining (English)."""
    repetition: Policy = "drop"
    """Goes round in a loop at its end."""
    unclosed_think: Policy = "drop"
    """Ended inside its thought: there is no answer."""
    tool_call: Policy = "drop"
    """Calls a tool instead of responding."""
    length: Policy = "drop"
    """Was cut at max_tokens. `keep` trains on it too, without an end of turn, so that the student does not learn to
    stop in mid-sentence."""
    other_script: Policy = "keep"
    """Is mostly written in a script of which the prompt has no letter."""

    def kinds(self, *policies: str) -> list[str]:
        """The kinds with one of these policies."""
        return [kind for kind, policy in self if policy in policies]


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


def falls_short(require: Mapping[Any, float]) -> pl.Expr:
    """Whether a row (columns domain and quality) has less quality than its domain requires, or none; never in a domain
    that is not named.

    Args:
        require: domain -> least quality.
    """
    if not require:
        return pl.lit(value=False)
    least = pl.col("domain").cast(pl.String).replace_strict(require, default=None, return_dtype=pl.Float64)
    return least.is_not_null() & ~(pl.col("quality") >= least).fill_null(False)


def empty(prompt: str, response: str) -> bool:
    """Nothing, or nothing but blanks."""
    return not response.strip()


def refusal(prompt: str, response: str) -> bool:
    """Begins by declining (English)."""
    return bool(REFUSAL.match(response[:TAIL].replace("\u2019", "'")))


def repetition(prompt: str, response: str) -> bool:
    """Goes round in a loop: of the 16-character windows in the last 1,000 characters, fewer than half differ."""
    tail = response[-TAIL:]
    windows = len(tail) - WINDOW + 1
    if windows <= 100 or 2 * _different(tail, (windows + 1) // 2) >= windows:  # mostly half of them differ already
        return False
    return 2 * _different(tail, windows) < windows


def _different(text: str, windows: int) -> int:
    """How many of the first windows differ."""
    return len({text[start : start + WINDOW] for start in range(windows)})


def unclosed_think(prompt: str, response: str) -> bool:
    """Ended inside its thought: there is no answer.

    This looks for a think-block in the text; detect_defects knows of thoughts that are apart from it.
    """
    return response.rfind("<think>") > response.rfind("</think>")


def tool_call(prompt: str, response: str) -> bool:
    """Calls a tool instead of responding."""
    return bool(TOOL_CALL.match(response))


def other_script(prompt: str, response: str) -> bool:
    """Is mostly written in a script of which the prompt has no letter (an English prompt answered in Chinese)."""
    asked, written = _scripts(prompt), _scripts(response)
    return bool(asked) and bool(written) and written.most_common(1)[0][0] not in asked


def _scripts(text: str) -> Counter[str]:
    scripts = Counter[str]()
    for letter, count in Counter(text[:TAIL]).items():  # of many thousand texts: few letters, counted in C
        if letter.isalpha():
            scripts[_script(letter)] += count
    return scripts


@functools.cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "?").partition(" ")[0]


DETECTORS: dict[str, Callable[[str, str], Any]] = {
    detect.__name__: detect for detect in (empty, refusal, repetition, unclosed_think, tool_call, other_script)
}

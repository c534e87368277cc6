"""Judged: what the verdicts of a judge will take, one for each response of the parallel set in its domains, and for
each routed one that has to be compared with another.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from persyn.cost import JUDGE, Prices
from persyn.generation import Teacher
from persyn.generation.requests import (
    each_sample,
    open_store,
    prepare_requests,
    read_row,
    stored_response,
    teacher_identity,
)
from persyn.planning.intervals import Use, add, between
from persyn.planning.usage import BYTES_A_TOKEN, Forecast
from persyn.quality import QualitySettings
from persyn.quality.judge import find_verdicts, question, states_score
from persyn.store import Rows, slug


def judge_use(
    prompts: pl.DataFrame,
    parallel: pl.DataFrame,
    compared: pl.DataFrame,
    forecasts: Mapping[str, Forecast],
    folder: Path,
    prices: Prices,
    quality: QualitySettings,
) -> Use:
    """What the verdicts that the store lacks will take: each is asked for once, or twice where it cannot be read. A
    second one is sure to be asked for where the store has a first that cannot be read.

    Args:
        prompts: PROMPTS, or declared_prompts.
        parallel: prompt_id, teacher and size of the responses to judge.
        compared: likewise, of those that the stage dataset may have to compare with another of the prompt; teacher is
            null where it is not known yet. None is judged if a defect decides, so none is sure to be.
        quality: how they will be scored: by a judge, in some domains.
    """
    settings = quality.judge
    assert settings is not None, "QualitySettings has a judge where methods name one"
    judged = [domain for domain, method in quality.methods.items() if method == "judge"]
    mine = prompts.filter(pl.col("domain").cast(pl.String).is_in(judged))
    pairs, compared = (one.join(mine.select("prompt_id"), on="prompt_id", how="semi") for one in (parallel, compared))
    texts = {key: text for name, one in forecasts.items() for key, text in _questions(mine, name, one.teacher, folder)}
    verdicts = dict(zip(texts, find_verdicts(list(texts.values()), folder, settings), strict=True))
    stored = {key: rows[0] for key, rows in verdicts.items() if rows}
    judge = settings.asked_as
    own = len((judge.system or "").encode())
    numbers = [
        (own + len(texts[key].encode()), row["num_prompt_tokens"], row["num_response_tokens"])
        for key, row in stored.items()
    ]
    shown, asked, said = np.array(numbers, float).reshape(-1, 3).T
    forecast = Forecast(JUDGE, judge, prices, shown, asked, said)
    counted = {texts[key] for key in stored}  # equal responses to a prompt make one question
    once, longest = (forecast.use(sizes) for sizes in _unjudged(pairs, forecasts, texts, counted))
    maybe = forecast.use(_unjudged(compared, forecasts, texts, counted)[1])
    most = add([longest, longest, maybe, maybe])
    new = between(once, most) if most.calls[1] else Use()
    reminded = {
        texts[key]: len(texts[key].encode()) + len(settings.reminder.encode())
        for key, rows in verdicts.items()
        if len(rows) == 1 and not states_score(rows[0], settings)
    }
    return add([new, forecast.use(np.array(list(reminded.values())))]) if reminded else new


def _unjudged(
    pairs: pl.DataFrame, forecasts: Mapping[str, Forecast], texts: Mapping[Any, str], counted: set[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the questions about the responses of `pairs` that are not in `counted`, to which they are added: at
    least and at most.
    """
    ends: tuple[list[float], list[float]] = ([], [])
    for prompt_id, teacher, size in pairs.select("prompt_id", "teacher", "size").iter_rows():
        pool = [one for one in forecasts.values() if not one.teacher.is_student]
        known = [forecasts[teacher]] if teacher else pool
        least, most = zip(*map(_response_bytes, known), strict=True)
        for sample in range(max(one.teacher.samples for one in known)):
            text = texts.get((prompt_id, teacher, sample))
            if text is not None and text not in counted:
                counted.add(text)
                given = len(text.encode()), len(text.encode())
            elif text is None:
                given = size + min(least), size + max(most)
            else:
                continue
            for end, length in zip(ends, given, strict=True):
                end.append(length)
    return np.array(ends[0]), np.array(ends[1])


def _response_bytes(forecast: Forecast) -> tuple[float, float]:
    """How long a response that is not made yet may be."""
    seen = forecast.lengths.mean() if len(forecast.lengths) else None
    least, most = (1, forecast.teacher.sampling.max_tokens) if seen is None else (seen, seen)
    return BYTES_A_TOKEN[0] * least, BYTES_A_TOKEN[1] * most


def _questions(
    prompts: pl.DataFrame, name: str, teacher: Teacher, folder: Path
) -> Iterator[tuple[tuple[str, str, int], str]]:
    """(prompt_id, teacher, sample) and the judge's question, of the responses in the store."""
    shelf = folder / slug(teacher_identity(teacher))
    if not prompts.height or prompts["prompt"].null_count() or not Rows(shelf):
        return
    store = open_store(folder, teacher)
    prompts = each_sample(prompts, teacher)
    asked = prompts.iter_rows(named=True), prepare_requests(prompts, teacher)
    for row, request in zip(*asked, strict=True):
        response = stored_response(store, request, teacher.sampling)
        if response:
            yield (row["prompt_id"], name, row.get("sample", 0)), question({**row, **read_row(response)})

"""Judged: what the verdicts of a judge will take, one for each response in its domains of the parallel set, and of the
prompts that go to two teachers, whose better response the dataset keeps.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from persyn.cost import JUDGE, Prices
from persyn.generation import Teacher
from persyn.generation.requests import open_store, prepare_requests, read_row, stored_response, teacher_identity
from persyn.planning.intervals import Use, add, between
from persyn.planning.usage import BYTES_A_TOKEN, Forecast
from persyn.quality import QualitySettings
from persyn.quality.judge import find_verdicts, question, states_score
from persyn.store import slug, verify


def judge_use(
    prompts: pl.DataFrame,
    parallel: pl.DataFrame,
    twice: pl.DataFrame,
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
        twice: the same of those that may have to be judged, since their prompt may go to two teachers; the teacher is
            null where it is not known yet.
        quality: how they will be scored: by a judge, in some domains.
    """
    settings = quality.judge
    assert settings is not None, "QualitySettings has a judge where methods name one"
    judged = [domain for domain, method in quality.methods.items() if method == "judge"]
    mine = prompts.filter(pl.col("domain").cast(pl.String).is_in(judged))
    pairs, maybe = (table.join(mine.select("prompt_id"), on="prompt_id", how="semi") for table in (parallel, twice))
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

    def sizes(table: pl.DataFrame) -> np.ndarray:
        """(n, 2), the bytes of the questions that are not asked yet, at least and at most."""
        ends = []
        for prompt_id, teacher, size in table.select("prompt_id", "teacher", "size").iter_rows():
            text = texts.get((prompt_id, teacher))
            if text is None:
                spans = [_response_bytes(forecasts[name]) for name in ([teacher] if teacher else forecasts)]
                ends.append([size + min(low for low, _ in spans), size + max(high for _, high in spans)])
            elif text not in counted:
                counted.add(text)
                ends.append([len(text.encode())] * 2)
        return np.array(ends, float).reshape(-1, 2)

    surely, perhaps = sizes(pairs), sizes(maybe)
    once, longest, more = (forecast.use(part) for part in (surely[:, 0], surely[:, 1], perhaps[:, 1]))
    new = between(once, add([longest, longest, more, more])) if len(surely) or len(perhaps) else Use()
    reminded = {
        texts[key]: len(texts[key].encode()) + len(settings.reminder.encode())
        for key, rows in verdicts.items()
        if len(rows) == 1 and not states_score(rows[0], settings)
    }
    return add([new, forecast.use(np.array(list(reminded.values())))]) if reminded else new


def _response_bytes(forecast: Forecast) -> tuple[float, float]:
    """How long a response that is not made yet may be."""
    seen = forecast.lengths.mean() if len(forecast.lengths) else None
    least, most = (1, forecast.teacher.sampling.max_tokens) if seen is None else (seen, seen)
    return BYTES_A_TOKEN[0] * least, BYTES_A_TOKEN[1] * most


def _questions(
    prompts: pl.DataFrame, name: str, teacher: Teacher, folder: Path
) -> Iterator[tuple[tuple[str, str], str]]:
    """(prompt_id, teacher) and the judge's question, of the responses in the store."""
    shelf = folder / slug(teacher_identity(teacher))
    if not prompts.height or prompts["prompt"].null_count() or not verify(shelf)[0].rows:
        return
    store = open_store(folder, teacher)
    asked = prompts.iter_rows(named=True), prepare_requests(prompts, teacher)
    for row, request in zip(*asked, strict=True):
        response = stored_response(store, request, teacher.sampling)
        if response and response["finish_reason"] != "error":
            yield (row["prompt_id"], name), question({**row, **read_row(response)})

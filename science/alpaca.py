"""The responses of 19 real models to AlpacaEval's prompts, with GPT-4's preferences, as tables for studies of routing.

The data are not ours: `profiles/alpaca/fetch.py` brings them. The learnability of each response, which takes hours to
score, is a result, and is kept in metrics/science/alpaca/learnability.parquet:

    python -m science.alpaca packaged:gemma3-270m    scores what that file lacks, in the order of prompt_id

It can be stopped at any time: the next call goes on after the last prompts that the file holds, and the response store
keeps what was scored since.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from persyn.errors import InputError
from persyn.learnability import LearnabilitySettings, score_learnability
from persyn.messages import user_message
from persyn.models import Student
from persyn.project.params import read_params
from persyn.prompts.conversations import normalise, prompt_id
from persyn.schemas import PROMPTS, RESPONSES
from persyn.store import store_folder

ROOT = Path(__file__).parent.parent
PROFILE = ROOT / "profiles/alpaca"
SCORES = ROOT / "metrics/science/alpaca/learnability.parquet"
MAX_TOKENS = 128
"""Of a response, how many tokens are scored."""
STEP = 20
"""Prompts between two writings of the file."""


@dataclass(frozen=True)
class Corpus:
    """N prompts in the order of prompt_id, and what M teachers responded."""

    prompts: pl.DataFrame
    """PROMPTS."""
    teachers: list[str]
    sizes: np.ndarray
    """(M,), billions of parameters; NaN where nobody says."""
    quality: np.ndarray
    """(N, M), GPT-4's preference."""
    responses: pl.DataFrame
    """RESPONSES."""

    def rows(self, kept: np.ndarray) -> "Corpus":
        """Those of some prompts, (N,) bool."""
        prompts = self.prompts.filter(kept)
        responses = self.responses.join(prompts, on="prompt_id", how="semi")
        return Corpus(prompts, self.teachers, self.sizes, self.quality[kept], responses)


def read_corpus(folder: Path) -> Corpus:
    """Read prompts.jsonl and the file of each teacher of profiles/alpaca.

    Raises:
        InputError: a file is not there, or a teacher lacks a prompt.
    """
    params = read_params(PROFILE / "params.yaml")
    if not (folder / "prompts.jsonl").is_file():
        raise InputError(f"{folder}/prompts.jsonl does not exist; run profiles/alpaca/fetch.py, or name another --data")
    found = {}
    for row in _lines(folder / "prompts.jsonl"):
        text = normalise(row["instruction"])
        found[prompt_id(text)] = (text, row["dataset"])
    identities = sorted(found)
    columns, responses = [], []
    for name, teacher in params.teachers.items():
        assert teacher.precomputed is not None
        rows = {
            prompt_id(normalise(row["instruction"])): row
            for row in _lines(folder / Path(str(teacher.precomputed.path)).name)
        }
        missing = [identity for identity in identities if identity not in rows]
        if missing:
            raise InputError(f"{name} has no response to {len(missing)} of {len(identities)} prompts in {folder}")
        columns.append([float(rows[identity]["preference"]) for identity in identities])
        for identity in identities:
            text = rows[identity]["output"].encode("utf-8", "replace").decode().strip()
            responses.append((identity, name, text, None, "stop", 0, 0))
    prompts = [
        (identity, user_message(found[identity][0]), "instruction", None, found[identity][1], "", True)
        for identity in identities
    ]
    return Corpus(
        pl.DataFrame(prompts, schema=PROMPTS, orient="row"),
        list(params.teachers),
        np.array([params.prices.sizes.get(name, np.nan) for name in params.teachers], dtype=float),
        np.array(columns).T,
        pl.DataFrame(responses, schema=RESPONSES, orient="row"),
    )


def read_scores(corpus: Corpus, student: str) -> np.ndarray:
    """Learnability (N, M), nats a token; NaN for responses not scored yet."""
    order = corpus.prompts.select("prompt_id").join(pl.DataFrame({"teacher": corpus.teachers}), how="cross")
    if not SCORES.is_file():
        return np.full(corpus.quality.shape, np.nan)
    table = pl.read_parquet(SCORES).filter(student=student)
    joined = order.join(table, on=["prompt_id", "teacher"], how="left", maintain_order="left")
    return joined["learnability"].to_numpy().reshape(len(corpus.prompts), -1)


def score(student: str, folder: Path) -> None:
    """Score every response under the student, and add the scores to the file."""
    corpus = read_corpus(folder)
    settings = LearnabilitySettings(max_tokens=MAX_TOKENS)
    model = Student(model=student, license="not needed", max_length=4096)
    missing = corpus.prompts.filter(np.isnan(read_scores(corpus, student)).any(axis=1))
    for start in range(0, len(missing), STEP):
        prompts = missing[start : start + STEP]
        responses = corpus.responses.join(prompts, on="prompt_id", how="semi")
        scored = score_learnability(prompts, responses, model, settings, store_folder())
        rows = scored.select(
            "prompt_id", "teacher", pl.lit(student).alias("student"), pl.col("learnability").cast(pl.Float32)
        )
        known = pl.read_parquet(SCORES) if SCORES.is_file() else rows.clear()
        merged = pl.concat([known, rows]).unique(["prompt_id", "teacher", "student"], keep="last")
        SCORES.parent.mkdir(parents=True, exist_ok=True)
        merged.sort("student", "prompt_id", "teacher").write_parquet(SCORES, compression="zstd", statistics=False)


def _lines(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    try:
        score(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else PROFILE / "data/raw/alpaca")
    except (InputError, IndexError) as error:
        sys.exit(f"error: {error}\nusage: python -m science.alpaca STUDENT [FOLDER]")

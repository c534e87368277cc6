"""Is routing worth it among real teachers? `python -m science.evidence` answers from the responses of 19 models.

Each study draws random splits of the prompts, trains every router on one part and measures it on the other. Differences
are in reward (min-max within the prompt, 0 to 1) from one teacher for all, the best by the training prompts; above 0,
routing is better. The splits share prompts, so intervals are those of Nadeau and Bengio (corrected_interval).
"""

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import spearmanr
from tqdm import tqdm

from persyn.defects import Policies
from persyn.errors import InputError
from persyn.files import markdown_table, read_json, write_json, write_text
from persyn.pairs import PairSettings, build_pairs
from persyn.rewards import RewardSettings, build_rewards
from persyn.router import Lesson, fit_trusted, train_router
from persyn.router.features import Scaling, embed
from persyn.router.metrics import routing_metrics
from persyn.router.reading import prompt_texts
from persyn.router.settings import Method, RouterSettings
from persyn.router.smoothing import ridge
from persyn.schemas import DEFECTS, LEARNABILITY, QUALITY
from persyn.statistics import corrected_interval
from science.alpaca import PROFILE, ROOT, Corpus, read_corpus, read_scores

OUT = ROOT / "metrics/science/alpaca"
STUDENTS = ("packaged:smollm2-135m-instruct", "packaged:gemma3-270m")
METHODS: tuple[Method, ...] = ("regression", "blend", "knn", "source", "linear")
SPLITS, SHARE, SEED = 20, 0.75, 2026
BACKBONE = STUDENTS[0]
MAX_LENGTH = 256
"""Tokens of a prompt that the router reads."""
FINETUNED: dict[str, Any] = {"model": "packaged:all-minilm-l6-v2", "learning_rate": 1e-4, "epochs": 3}
FINETUNED_SPLITS = 5
"""Of the splits, how many the fine-tuned router is trained on: it takes minutes for each."""
CURVES = (0.4, 0.7)
"""The values of alpha for which each student has a curve over training prompts."""
SMALL = 9.0
"""Billions of parameters: a teacher of this size or less is small."""
COLUMNS = [
    *("student", "alpha", "source", "teachers", "prompts", "router", "difference", "low", "high", "won", "lost"),
    *("detectable", "splits_routed", "oracle", "regret", "hit_at_1", "hit_at_3", "hit_at_3_oracle"),
]
Table = list[dict[str, Any]]


class Study:
    """The lessons of one student and alpha."""

    def __init__(self, corpus: Corpus, features: np.ndarray, scores: np.ndarray, alpha: float) -> None:
        self.corpus, self.features, self.alpha = corpus, features, alpha
        keys = corpus.prompts.select("prompt_id").join(pl.DataFrame({"teacher": corpus.teachers}), how="cross")
        quality = keys.with_columns(quality=pl.Series(corpus.quality.ravel())).select(QUALITY.names())
        learned = keys.with_columns(
            learnability=pl.Series(scores.ravel()), num_tokens=pl.lit(1, pl.Int64), truncated=pl.lit(False)
        ).select(LEARNABILITY.names())
        none = pl.DataFrame(schema=DEFECTS)
        settings = RewardSettings(alpha=alpha)
        table, _ = build_rewards(quality, learned, none, corpus.teachers, Policies(), settings)
        self.pairs = build_pairs(table, PairSettings())
        wide = table.pivot(on="teacher", index="prompt_id", values="reward").sort("prompt_id")
        self.rewards = wide.select(corpus.teachers).to_numpy()

    def lesson(self, rows: np.ndarray, teachers: np.ndarray | None = None) -> Lesson:
        """What these prompts teach of all the teachers, or some."""
        pool = np.arange(len(self.corpus.teachers)) if teachers is None else teachers
        names = [self.corpus.teachers[position] for position in pool]
        pairs = self.pairs.filter(pl.col("winner").is_in(names) & pl.col("loser").is_in(names))
        rows = np.sort(rows)
        return Lesson(
            self.corpus.prompts[rows], self.rewards[np.ix_(rows, pool)], pairs, names, None, self.features[rows]
        )


def splits(number: int, train: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """SPLITS random splits of `number` prompts; of the training part, `train` prompts at most."""
    random, size = np.random.default_rng(SEED), round(SHARE * number)
    orders = [random.permutation(number) for _ in range(SPLITS)]
    return [(order[:size][:train], order[size:]) for order in orders]


def routed(study: Study, rows: np.ndarray, settings: RouterSettings, lesson: Lesson) -> tuple[np.ndarray, Any, Any]:
    """Strengths on `rows` of a router, the same unshrunk, and its trust."""
    router, trust = fit_trusted(lesson, settings)
    prompts = study.corpus.prompts[rows]
    asked = prompt_texts(prompts), prompts["source"].to_list(), study.features[rows]
    inner = router.router.strengths(*asked)
    return router.strengths(*asked), inner, trust


def half_trusted(lesson: Lesson, predicted: np.ndarray) -> np.ndarray:
    """Predicted rewards (N, M), pulled half-way to the teachers' means."""
    mean = lesson.rewards.mean(axis=0)
    return mean + 0.5 * (predicted - mean)


def difference(strengths: np.ndarray, rewards: np.ndarray, best: int) -> float:
    """Mean reward of routing by strengths (N, M) less that of the teacher `best` for all."""
    return float((rewards[np.arange(len(rewards)), strengths.argmax(axis=1)] - rewards[:, best]).mean())


def summary(name: str, values: Sequence[float], split: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """A row of a table: the mean difference over the splits with its interval."""
    found = corrected_interval(np.array(values), *map(len, split))
    low, high = found["interval"]
    lost = sum(value < 0 for value in values)
    return {
        "router": name,
        "difference": found["difference"],
        "low": low,
        "high": high,
        "won": found["splits_won"],
        "lost": lost,
        "detectable": found["mde"],
    }


def compare(study: Study, methods: Sequence[Method] = METHODS, shuffle: bool = False) -> Table:
    """Every router and control against one teacher for all, and the metrics of routing."""
    found: dict[str, list[float]] = {}
    metrics: dict[str, list[dict[str, float]]] = {}
    random = np.random.default_rng(SEED)
    opened: dict[str, list[float]] = {}
    drawn = splits(len(study.rewards))
    for train, test in tqdm(drawn, desc="splits"):
        lesson = study.lesson(train)
        lesson = lesson.shuffled(int(random.integers(1 << 31))) if shuffle else lesson
        rewards, best = study.rewards[test], int(lesson.rewards.mean(axis=0).argmax())
        said = {"random": random.random(rewards.shape), "one teacher": np.eye(rewards.shape[1])[[best] * len(test)]}
        for method in methods:
            settings = RouterSettings(model=BACKBONE, method=method)
            said[method], said[f"{method}, unshrunk"], trust = routed(study, test, settings, lesson)
            opened.setdefault(method, []).append(trust["trust"])
        for name, strengths in said.items():
            found.setdefault(name, []).append(difference(strengths, rewards, best))
            metrics.setdefault(name, []).append(routing_metrics(strengths, rewards))
    rows = [summary(name, values, drawn[0]) for name, values in found.items()]
    for row in rows:
        means = pl.DataFrame(metrics[row["router"]]).mean().row(0, named=True)
        row |= means | {"splits_routed": sum(s > 0 for s in opened.get(row["router"], []))}
    return rows


def curve(study: Study, detail: bool = False) -> Table:
    """The default router from 50 training prompts on.

    Args:
        detail: add the same always half trusted, and what a line through its gain against 1/n predicts for 2,500.
    """
    rows = []
    most = len(splits(len(study.rewards))[0][0])
    for number in sorted({*(size for size in (50, 100, 200, 300) if size < most), most}):
        drawn = splits(len(study.rewards), number)
        values, free, metrics = [], [], []
        for train, test in tqdm(drawn, desc=f"{number} prompts"):
            lesson, rewards = study.lesson(train), study.rewards[test]
            best = int(lesson.rewards.mean(axis=0).argmax())
            shrunk, inner, _ = routed(study, test, RouterSettings(model=BACKBONE), lesson)
            values.append(difference(shrunk, rewards, best))
            free.append(difference(half_trusted(lesson, inner), rewards, best))
            metrics.append(routing_metrics(shrunk, rewards))
        means = pl.DataFrame(metrics).mean().row(0, named=True)
        rows += [{"prompts": number} | summary("regression", values, drawn[0]) | means]
        if detail:
            rows += [{"prompts": number} | summary("regression, always half trusted", free, drawn[0])]
    if not detail:
        return rows
    free_rows = [row for row in rows if row["router"] != "regression"]
    slope, at_infinity = np.polyfit([1 / row["prompts"] for row in free_rows], [r["difference"] for r in free_rows], 1)
    return [
        *rows,
        {"prompts": 2500, "router": "predicted, always half trusted", "difference": at_infinity + slope / 2500},
    ]


def students_compared(corpus: Corpus, features: np.ndarray, scores: Mapping[str, np.ndarray], alpha: float) -> Table:
    """Does the best teacher of a prompt depend on the student? On the prompts scored under both students of a pair.

    `same_best`: share of the prompts with the same best teacher for both. `other's_best` and `random`: the first
    student's mean reward lost, from its own best teacher of each prompt, with the other's best or a random teacher.
    `rank_correlation`: Spearman's, of the rewards within a prompt, the mean over the prompts.
    """
    rows = []
    for one, other in itertools.permutations(scores, 2):
        both = np.isfinite(scores[one]).all(axis=1) & np.isfinite(scores[other]).all(axis=1)
        if both.sum() < 2:
            continue
        mine, others = (
            Study(corpus.rows(both), features[both], scores[student][both], alpha).rewards for student in (one, other)
        )
        each, best = np.arange(len(mine)), mine.argmax(axis=1)
        correlations = [spearmanr(*pair).statistic for pair in zip(mine, others, strict=True)]
        rows.append(
            {
                "student": one,
                "other": other,
                "alpha": alpha,
                "prompts": len(mine),
                "same_best": float((best == others.argmax(axis=1)).mean()),
                "other's_best": float((mine[each, best] - mine[each, others.argmax(axis=1)]).mean()),
                "random": float((mine[each, best] - mine.mean(axis=1)).mean()),
                "rank_correlation": float(np.mean(correlations)),
                "one_teacher": corpus.teachers[int(mine.mean(axis=0).argmax())],
                "one_teacher_of_other": corpus.teachers[int(others.mean(axis=0).argmax())],
            }
        )
    return rows


def pools(study: Study) -> Table:
    """The default router on random pools of 3, 5 and 10 teachers, and on all; one pool a split."""
    rows, random = [], np.random.default_rng(SEED)
    everyone = len(study.corpus.teachers)
    drawn = splits(len(study.rewards))
    for size in (3, 5, 10, everyone):
        values, gaps, metrics = [], [], []
        for train, test in tqdm(drawn, desc=f"{size} teachers"):
            pool = np.sort(random.choice(everyone, size, replace=False))
            lesson, rewards = study.lesson(train, pool), study.rewards[np.ix_(test, pool)]
            best = int(lesson.rewards.mean(axis=0).argmax())
            strengths, _, _ = routed(study, test, RouterSettings(model=BACKBONE), lesson)
            values.append(difference(strengths, rewards, best))
            gaps.append(float((rewards.max(axis=1) - rewards[:, best]).mean()))
            metrics.append(routing_metrics(strengths, rewards))
        means = pl.DataFrame(metrics, infer_schema_length=None).mean().row(0, named=True)
        rows.append(
            {"teachers": size} | summary("regression", values, drawn[0]) | {"oracle": float(np.mean(gaps))} | means
        )
    return rows


def transfer(study: Study) -> Table:
    """Trained on all sources but one, measured on that one, beside half of its own prompts in the training."""
    sources, rows = study.corpus.prompts["source"].to_numpy(), []
    for source in np.unique(sources):
        inside, outside = np.flatnonzero(sources == source), np.flatnonzero(sources != source)
        own, test = inside[::2], inside[1::2]
        row: dict[str, Any] = {"source": str(source), "prompts": len(test)}
        for name, train in (("without it", outside), ("with it", np.concatenate([outside, own]))):
            lesson, rewards = study.lesson(train), study.rewards[test]
            best = int(lesson.rewards.mean(axis=0).argmax())
            strengths, inner, trust = routed(study, test, RouterSettings(model=BACKBONE), lesson)
            row |= {name: difference(strengths, rewards, best), f"{name}, trust": trust["trust"]}
            row[f"{name}, half trusted"] = difference(half_trusted(lesson, inner), rewards, best)
        rows.append(row)
    return rows


def who_is_best(study: Study) -> dict[str, Any]:
    """Who is best on how many prompts, the oracle's gap, and the share that goes to small teachers."""
    best = study.rewards.argmax(axis=1)
    shares = np.bincount(best, minlength=len(study.corpus.teachers)) / len(best)
    one = int(study.rewards.mean(axis=0).argmax())
    small = study.corpus.sizes <= SMALL
    return {
        "prompts": len(best),
        "one_teacher": study.corpus.teachers[one],
        "one_teacher_is_best": float(shares[one]),
        "oracle_gap": float((study.rewards.max(axis=1) - study.rewards[:, one]).mean()),
        "small_share": float(shares[small].sum()),
        "small_by_chance": float(small.mean()),
        "best_share": dict(zip(study.corpus.teachers, shares.tolist(), strict=True)),
    }


def features_compared(corpus: Corpus, scores: np.ndarray) -> Table:
    """The default router at alpha 0 on other features, always half trusted, on the same splits."""
    texts, rows = prompt_texts(corpus.prompts), []
    for model, layers in (
        (STUDENTS[0], None), (STUDENTS[0], [0]), (STUDENTS[1], None),
        ("packaged:all-minilm-l6-v2", None), ("packaged:all-minilm-l6-v2", [6]), ("packaged:all-minilm-l6-v2", [0]),
    ):  # fmt: skip
        study = Study(corpus, embed(texts, model, None, MAX_LENGTH, layers), scores, 0.0)
        values, drawn = [], splits(len(texts))
        for train, test in drawn:
            lesson = study.lesson(train)
            rewards, best = study.rewards[test], int(lesson.rewards.mean(axis=0).argmax())
            settings = RouterSettings(model=model, layers=layers, shrink=False)
            router, _ = fit_trusted(lesson, settings)
            prompts = corpus.prompts[test]
            inner = router.strengths(prompt_texts(prompts), prompts["source"].to_list(), study.features[test])
            values.append(difference(half_trusted(lesson, inner), rewards, best))
        rows.append(
            summary(f"{model.removeprefix('packaged:')}, layers {layers or 'quarter and last'}", values, drawn[0])
        )
    return rows


def borrowed(study: Study) -> Table:
    """Ridge regression, half trusted, with prompts weighted by the spread of their rewards, and with what it adds for a
    teacher tied to what is known of the teacher.

    `correlation`: over the test prompts, of a teacher's reward and what is predicted, both less their means on the
    prompt; the mean over teachers. The last row has it for a teacher whose rewards are unknown.
    """
    teachers, settings = _teacher_features(study.corpus), RouterSettings(model=BACKBONE)
    onto = teachers @ np.linalg.pinv(teachers)
    found: dict[str, list[float]] = {}
    fits: dict[str, list[float]] = {}
    drawn = splits(len(study.rewards))
    for train, test in drawn:
        rewards, mean = study.rewards[train], study.rewards[train].mean(axis=0)
        scaling = Scaling.fit(study.features[train], settings.components)
        known, asked = scaling(study.features[train]), scaling(study.features[test])
        spread = rewards.std(axis=1) / rewards.std(axis=1).mean()
        plain = _mean_ridge(known, rewards - mean, np.ones(len(train)), settings)
        said = {
            "plain": asked @ plain,
            "prompts weighted by spread": asked @ _mean_ridge(known, rewards - mean, spread, settings),
            "by the teacher's features alone": asked @ plain @ onto,
            "half by the teacher's features": asked @ plain @ (np.eye(len(mean)) + onto) / 2,
        }
        for name, added in said.items():
            change = difference(mean + 0.5 * added, study.rewards[test], int(mean.argmax()))
            found.setdefault(name, []).append(change)
        each = range(len(mean))
        others = [np.delete(plain, t, axis=1) @ np.linalg.pinv(np.delete(teachers, t, axis=0)).T for t in each]
        unknown = np.stack([asked @ others[t] @ teachers[t] for t in each], axis=1)
        said["a teacher without rewards, by its features"] = unknown
        for name, added in said.items():
            pairs = [values - values.mean(axis=1, keepdims=True) for values in (added, study.rewards[test])]
            correlations = [np.corrcoef(pairs[0][:, t], pairs[1][:, t])[0, 1] for t in each]
            fits.setdefault(name, []).append(float(np.mean(correlations)))
    rows = [summary(name, found[name], drawn[0]) if name in found else {"router": name} for name in fits]
    return [row | {"correlation": float(np.mean(fits[row["router"]]))} for row in rows]


def _teacher_features(corpus: Corpus) -> np.ndarray:
    """(M, 3): 1; log of the size (where nobody says, the mean); log of the mean length of its responses. The last two
    have mean 0 and deviation 1.
    """
    lengths = corpus.responses.group_by("teacher").agg(pl.col("response").str.len_chars().mean())
    length = dict(lengths.iter_rows())
    size = np.log(corpus.sizes)
    long = np.log([length[teacher] for teacher in corpus.teachers])
    columns = np.stack([np.where(np.isnan(size), np.nanmean(size), size), long], axis=1)
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    return np.column_stack([np.ones(len(columns)), columns])


def _mean_ridge(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, settings: RouterSettings) -> np.ndarray:
    """Coefficients (D, M) of ridge regressions with weights (N,) of the prompts, the mean over the penalties."""
    root = np.sqrt(weights)[:, None]
    return np.mean([ridge(root * features, root * targets, penalty) for penalty in settings.penalties], axis=0)


def losses(study: Study) -> Table:
    """The linear Bradley-Terry router by the loss it is trained with, unshrunk and half trusted."""
    variants: dict[str, dict[str, Any]] = {
        "pairs, l2 0.001": {"l2": 1e-3},
        "pairs weighted by margin, l2 0.001": {"l2": 1e-3, "by_margin": True},
        "whole rankings (Plackett-Luce), l2 0.001": {"l2": 1e-3, "loss": "listwise"},
        "pairs, l2 0.1": {"l2": 0.1},
    }
    rows: Table = []
    for name, changes in variants.items():
        rows += bradley_terry(study, name, RouterSettings(model=BACKBONE, method="linear", **changes))
    return rows


def finetuned(study: Study) -> Table:
    """The paper's router, a fine-tuned backbone, on the first splits; the linear one and the default on the same."""
    method = RouterSettings(method="finetuned", max_length=MAX_LENGTH, **FINETUNED)
    rows = bradley_terry(study, "fine-tuned MiniLM", method, FINETUNED_SPLITS)
    rows += bradley_terry(study, "linear", RouterSettings(model=BACKBONE, method="linear"), FINETUNED_SPLITS)
    drawn, values = splits(len(study.rewards))[:FINETUNED_SPLITS], []
    for train, test in drawn:
        lesson, rewards = study.lesson(train), study.rewards[test]
        strengths, _, _ = routed(study, test, RouterSettings(model=BACKBONE), lesson)
        values.append(difference(strengths, rewards, int(lesson.rewards.mean(axis=0).argmax())))
    return [*rows, summary("regression", values, drawn[0])]


def bradley_terry(study: Study, name: str, settings: RouterSettings, number: int = SPLITS) -> Table:
    """A Bradley-Terry router on the first `number` splits, as it is and half trusted.

    Half trusted, its strengths are scaled to the spread of the rewards and pulled half-way to the teachers' means.
    """
    own, half, texts = [], [], prompt_texts(study.corpus.prompts)
    drawn = splits(len(study.rewards))[:number]
    for train, test in tqdm(drawn, desc=name):
        lesson, rewards = study.lesson(train), study.rewards[test]
        router = train_router(lesson, settings)
        mean, best = lesson.rewards.mean(axis=0), int(lesson.rewards.mean(axis=0).argmax())
        before, asked = [
            router.strengths([texts[row] for row in part], None, study.features[part])
            for part in (np.sort(train), test)
        ]
        own.append(difference(asked, rewards, best))
        slope = lesson.rewards.std() / before.std()
        half.append(difference(mean + 0.5 * slope * (asked - before.mean(axis=0)), rewards, best))
    return [summary(f"{name}, unshrunk", own, drawn[0]), summary(f"{name}, half trusted", half, drawn[0])]


def student_jobs(name: str, study: Study) -> dict[str, Callable[[], Table]]:
    """The tables of one student and alpha, by name."""
    jobs: dict[str, Callable[[], Table]] = {name: lambda: compare(study)}
    if study.alpha in CURVES:
        jobs[f"{name}, more prompts"] = lambda: curve(study)
    return jobs


def page(tables: Mapping[str, Table]) -> str:
    """All tables as markdown."""
    parts = []
    for title, rows in tables.items():
        found = dict.fromkeys(key for row in rows for key in row)
        columns = sorted(found, key=lambda column: COLUMNS.index(column) if column in COLUMNS else len(COLUMNS))
        cells = [[_cell(row.get(column)) for column in columns] for row in rows]
        parts.append(f"## {title}\n\n{markdown_table(columns, cells)}\n")
    return "\n".join(parts)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:+.4f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run all studies, or those named, and write their tables beside those that are there, on the same prompts."""
    parser = argparse.ArgumentParser(prog="python -m science.evidence", description=__doc__)
    parser.add_argument("--data", type=Path, default=PROFILE / "data/raw/alpaca", help="folder with the jsonl files")
    parser.add_argument("--alphas", type=float, nargs="*", default=[0.0, 0.2, 0.4, 0.7, 1.0])
    parser.add_argument("--tables", nargs="*", help="tables whose names contain one of these words; all if not given")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    known = read_json(asked.out / "evidence.json") if (asked.out / "evidence.json").is_file() else {}
    corpus = read_corpus(asked.data)
    if known:  # tables that stand side by side are of the same prompts
        corpus = corpus.rows(corpus.prompts["prompt_id"].is_in(known["prompt_ids"]).to_numpy())
    scores = {student: read_scores(corpus, student) for student in STUDENTS}
    features = embed(prompt_texts(corpus.prompts), BACKBONE, None, MAX_LENGTH)
    nothing = np.zeros_like(corpus.quality)
    zero = Study(corpus, features, nothing, 0.0)
    jobs: dict[str, Callable[[], Table]] = {
        "alpha 0": lambda: compare(zero),
        "alpha 0, labels shuffled": lambda: compare(zero, METHODS[:-1], shuffle=True),
        "alpha 0, more prompts": lambda: curve(zero, detail=True),
        "alpha 0, pools": lambda: pools(zero),
        "alpha 0, other sources": lambda: transfer(zero),
        "alpha 0, losses": lambda: losses(zero),
        "alpha 0, fine-tuned": lambda: finetuned(zero),
        "alpha 0, weights and teachers": lambda: borrowed(zero),
        "alpha 0, features": lambda: features_compared(corpus, nothing),
    }
    best = [{"student": "any", "alpha": 0.0} | who_is_best(zero)]
    for student, found in scores.items():
        kept = np.isfinite(found).all(axis=1)
        for alpha in filter(None, asked.alphas if kept.sum() >= 100 else []):
            study = Study(corpus.rows(kept), features[kept], found[kept], alpha)
            best.append({"student": student, "alpha": alpha} | who_is_best(study))
            jobs |= student_jobs(f"{student.removeprefix('packaged:')}, alpha {alpha}, {kept.sum()} prompts", study)
    jobs["two students"] = lambda: [
        row for alpha in filter(None, asked.alphas) for row in students_compared(corpus, features, scores, alpha)
    ]
    outdated = re.compile(r".*, alpha [\d.]+, \d+ prompts.*")  # of fewer prompts than are scored now
    kept_tables = {
        name: rows for name, rows in known.get("tables", {}).items() if name in jobs or not outdated.fullmatch(name)
    }
    tables: dict[str, Table] = kept_tables | {
        "who is best": [{key: value for key, value in row.items() if key != "best_share"} for row in best]
    }
    identities = corpus.prompts["prompt_id"].to_list()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, job in jobs.items():
        if asked.tables is not None and not any(word in name for word in asked.tables):
            continue
        tables[name] = job()
        write_json({"best_share": best, "prompt_ids": identities, "tables": tables}, asked.out / "evidence.json")
        write_text(page(tables), asked.out / "evidence.md")
        print(page({name: tables[name]}), flush=True)  # noqa: T201


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")

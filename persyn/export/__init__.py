"""Export: one strategy's dataset for others to use: every row with its teacher, terms and scores, and a card."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from persyn.dataset import DatasetSettings
from persyn.dataset.card import shown
from persyn.dataset.mix import MIX, MixSource, is_mix
from persyn.defects import Policies
from persyn.errors import InputError
from persyn.files import markdown_table, markdown_text
from persyn.generation import Teacher
from persyn.router.worth import worth_text
from persyn.schemas import MESSAGES
from persyn.summary import told_hits

KEYS = ["prompt_id", "teacher"]
COLUMNS: dict[str, tuple[Any, str]] = {
    "prompt": (MESSAGES, "messages (role, content) that the teacher answered, without its own system prompt"),
    "completion": (MESSAGES, "the answer, as one message"),
    "messages": (MESSAGES, "`prompt` and `completion` in one list"),
    "reasoning": (pl.String, "the teacher's thought before the answer; null where it gave none"),
    "teacher_id": (
        pl.String,
        "which teacher answered, by its name above; mix: and a name where the row is from an existing data set",
    ),
    "teacher_model": (
        pl.String,
        "its model; several teachers may be one model asked in several ways; of a mix its data set",
    ),
    "prompt_id": (pl.String, "content hash of the prompt"),
    "domain": (pl.String, "instruction, math or code"),
    "source": (pl.String, "where the prompt is from"),
    "license": (pl.String, "licence of the prompt"),
    "teacher_license": (pl.String, "licence of the teacher"),
    "training": (pl.String, "whether the answer may train other models: allowed, conditional, forbidden or unknown"),
    "quality": (pl.Float64, "score of the answer; null where it was not scored"),
    "learnability": (pl.Float64, "score of the answer under the student before training; null as `quality`"),
    "reward": (pl.Float64, "both, mixed, relative to the other teachers' answers to this prompt; null as `quality`"),
    "strength": (pl.Float64, "the router's strength of this teacher on this prompt; null where no router chose"),
    "margin": (pl.Float64, "its lead over the best other teacher; null as `strength`, or where there is no other"),
    "num_response_tokens": (
        pl.Int64,
        "tokens of the answer and of any thought before it, by the teacher's tokenizer; null in rows of a mix",
    ),
    "finish_reason": (pl.String, "stop, or length where the answer was cut"),
}
"""name -> type and meaning."""
EXPORT = pl.Schema({name: kind for name, (kind, _) in COLUMNS.items()})
NULLABLE = ("reasoning", "quality", "learnability", "reward", "strength", "margin")
TYPES = {
    MESSAGES: "list of {role: string, content: string}",
    pl.String: "string",
    pl.Float64: "float64",
    pl.Int64: "int64",
}
THOUGHTFUL = "list of {role: string, content: string, reasoning_content: string}"


def build_export(
    prompts: pl.DataFrame,
    dataset: pl.DataFrame,
    routes: pl.DataFrame,
    routed: pl.DataFrame,
    parallel: pl.DataFrame,
    rewards: pl.DataFrame,
    teachers: Mapping[str, Teacher],
    mixes: Sequence[MixSource] = (),
) -> pl.DataFrame:
    """Join the dataset with everything known about its rows.

    Args:
        prompts: PROMPTS.
        dataset: DATASET.
        routes: ROUTES of the dataset's strategy, with the teachers asked after the chosen ones (asked_routes).
        routed: RESPONSES of its routes.
        parallel: RESPONSES of all teachers to the parallel set; these were scored.
        rewards: REWARDS. A row has scores if exactly its response was scored.
        teachers: by name, those in `dataset` at least.
        mixes: of dataset.mix, those in `dataset` at least. Their rows have neither route nor scores nor counted tokens.

    Returns:
        EXPORT, sorted by prompt_id and teacher_id; nulls in NULLABLE only, and in the tokens of mixed rows. No text is
        changed.

    Raises:
        InputError: the tables are from different runs: a row has no prompt or route, a different response, or terms
            that its teacher no longer has.
    """
    mixed, dataset = _mixed(dataset.filter(is_mix()), mixes), dataset.filter(~is_mix())
    scored = parallel.select(*KEYS, scored="response")
    scores = rewards.join(scored, on=KEYS, how="left", validate="1:1")
    asked = prompts.rename({"prompt": "asked", "license": "license_now"})
    rows = dataset.drop("finish_reason", strict=False).join(asked, on="prompt_id", how="left", validate="m:1")
    for table in (routes.with_columns(routed=True), routed.drop("reasoning", strict=False), scores):
        rows = rows.join(table, on=KEYS, how="left", validate="1:1")
    assert rows.height == dataset.height, f"{rows.height} rows of {dataset.height} in the dataset"
    _check_one_run(rows, teachers)
    same = pl.col("response").eq_missing(pl.col("scored"))
    rows = rows.sort(KEYS).with_columns(
        pl.when(same).then(pl.col("quality", "learnability", "reward")),
        pl.col("domain", "finish_reason").cast(pl.String),
        source=pl.col("source").replace({name: shown(name) for name in rows["source"].unique()}),
        messages=pl.concat_list("prompt", "completion"),
        teacher_id="teacher",
        teacher_model=pl.col("teacher").replace({name: shown(one.model) for name, one in teachers.items()}),
    )
    made = rows.select(EXPORT.names())
    assert made.schema == EXPORT, made.schema
    assert not made.drop(NULLABLE).null_count().sum_horizontal().item()
    return pl.concat([made, mixed]).sort("prompt_id", "teacher_id") if mixed.height else made


def _mixed(rows: pl.DataFrame, mixes: Sequence[MixSource]) -> pl.DataFrame:
    """EXPORT of the rows of mixes."""
    known = {mix.teacher: mix for mix in mixes}
    given = [known.get(name) for name in rows["teacher"]]
    for one, (name, *terms) in zip(given, rows.select("teacher", "license", "training").iter_rows(), strict=True):
        if one is None or [one.license, one.training] != terms:
            now = f"whose terms are {one.license}, {one.training} now" if one else "which dataset.mix does not name"
            raise InputError(f"the dataset holds rows of {name} ({', '.join(terms)}), {now}; run `dvc repro`")
    fields = [(mix.domain, shown(mix.title), shown(mix.name)) for mix in given if mix]
    about = pl.DataFrame(fields, schema=dict.fromkeys(["domain", "source", "teacher_model"], pl.String), orient="row")
    rows = rows.hstack(about).with_columns(
        teacher_id=MIX + pl.col("source"), messages=pl.concat_list("prompt", "completion")
    )
    empty = [pl.lit(None, EXPORT[name]).alias(name) for name in EXPORT if name not in rows.columns]
    return rows.with_columns(empty).select(EXPORT.names())


def _check_one_run(rows: pl.DataFrame, teachers: Mapping[str, Teacher]) -> None:
    """Refuse a row that contradicts what was joined to it."""
    terms = [(name, teacher.license, teacher.training) for name, teacher in teachers.items()]
    names = ["teacher", "teacher_license_now", "training_now"]
    rows = rows.join(pl.DataFrame(terms, schema=names, orient="row"), on="teacher", how="left", validate="m:1")

    completion = pl.col("completion").list.first().struct.field("content")
    agree = {
        "are not of a prompt of prompts.parquet": pl.col("prompt").eq_missing(pl.col("asked")),
        "have another licence than their prompt": pl.col("license").eq_missing(pl.col("license_now")),
        "have no route": pl.col("routed").is_not_null(),
        "have another response than was routed": completion.eq_missing(pl.col("response")),
        "have other terms than their teacher": pl.col("teacher_license").eq_missing(pl.col("teacher_license_now"))
        & pl.col("training").eq_missing(pl.col("training_now")),
    }
    for what, holds in agree.items():
        wrong = rows.filter(~holds)
        if wrong.height:
            raise InputError(
                f"{wrong.height} of {rows.height} rows of the dataset {what} (first: {wrong['prompt_id'][0]} of "
                f"{wrong['teacher'][0]}): the tables are from different runs; run `dvc repro`"
            )


def against_publishing(export: pl.DataFrame) -> list[str]:
    """Reasons not to publish these rows: terms that forbid it, or that nobody looked up."""
    found = export.filter(pl.col("training").is_in(["forbidden", "unknown"])).select("teacher_id", "training").unique()
    reasons = [f"the terms of {name} are {training}" for name, training in sorted(found.rows())]
    return reasons + [
        f"the prompts of {source} name no licence"
        for source in export.filter(pl.col("license").str.strip_chars() == "")["source"].unique().sort().to_list()
    ]


def describe_export(
    strategy: str,
    export: pl.DataFrame,
    params: Mapping[str, Any],
    allocation: Mapping[str, Any],
    router: Mapping[str, Any],
    provenance: Mapping[str, str | None],
) -> dict[str, str]:
    """The sections that an export adds to the dataset's card: heading -> markdown, as build_card takes them.

    Args:
        export: EXPORT.
        params: all of params.yaml.
        allocation: as routes.allocation returns it.
        router: metrics/router.json; used where the strategy's rule is persyn.
        provenance: label -> value, such as the version and the commit; None is shown as unknown.
    """
    rule = params["strategies"][strategy]
    settings = json.dumps({key: value for key, value in rule.items() if key != "rule"}, ensure_ascii=False)
    student, alpha = params["student"], params["rewards"].get("alpha")
    model = f"{shown(student['model'])} {student.get('revision') or ''}".strip()
    lines = [
        *provenance_lines(provenance),
        f"Strategy: rule {markdown_text(rule['rule'])}, parameters {markdown_text(settings)}.",
        f"Student that it was made for: {markdown_text(model)} (licence {markdown_text(student['license'])}).",
        f"Weight of learnability in the reward, alpha: {markdown_text(alpha)}.",
        _router(router) if rule["rule"] == "persyn" else "No router chose the teachers.",
        f"Evaluation sets that prompts were compared with: {_evaluation_sets(params)}.",
    ]
    counts = dict(export["teacher_id"].value_counts().rows())
    shares = [(name, f"{share:.1%}", counts.get(name, 0)) for name, share in sorted(allocation["share"].items())]
    return {
        "Provenance": bullets(lines),
        "Allocation": f"Of {allocation['prompts']} prompts; rows are those that were fit to train on.\n\n"
        + markdown_table(["teacher", "share of the routes", "rows"], shares),
        "Scores": bullets(
            [
                *score_lines(params),
                f"{export['reward'].count()} of {export.height} rows have scores: their prompts were parallel.",
            ]
        ),
        "Limits": bullets(limit_lines(export)),
        "Load and train": LOAD,
        "Columns": columns_table(export.schema, {name: meaning for name, (_, meaning) in COLUMNS.items()}),
        "Citation": CITATION,
    }


def columns_table(schema: pl.Schema, meanings: Mapping[str, str]) -> str:
    """The columns of a table with their types and meanings, in markdown."""
    rows = [(name, TYPES.get(kind, THOUGHTFUL), meanings[name].replace("`", "")) for name, kind in schema.items()]
    return markdown_table(["column", "type", "meaning"], rows)


def provenance_lines(provenance: Mapping[str, str | None]) -> list[str]:
    """Label -> value in lines of a card; None is shown as unknown."""
    return [f"{label}: {markdown_text(value or 'unknown')}." for label, value in provenance.items()]


def bullets(lines: Iterable[str]) -> str:
    """A list in markdown."""
    return "\n".join(f"- {line}" for line in lines)


def _router(found: Mapping[str, Any]) -> str:
    hits = [name for name in told_hits(found) if name != "hit_at_3_oracle"]
    names = ("num_train", "num_held_out", *hits, "pair_accuracy", "regret", "calibration")
    values = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    over, placed = found.get("over_majority"), ", ".join(found.get("placed") or [])
    beside = ""
    if over:
        bounds = "" if over["interval"] is None else " (95 % {:+.3f} to {:+.3f})".format(*over["interval"])
        beside = f"; its reward minus that of the one teacher of the highest mean reward: {over['difference']:+.3f}"
        beside += f"{bounds}, {over['verdict']}"
    without = f"; measured without {placed}, placed beside it by anchors" if placed else ""
    worth = "".join(f"{markdown_text(line)} " for line in worth_text(found)[:1])
    return f"{worth}Router, on held-out parallel prompts: {markdown_text(values + beside + without) or 'not measured'}."


def _evaluation_sets(params: Mapping[str, Any]) -> str:
    named = params["prompts"].get("decontaminate") or []
    return ", ".join(markdown_text(shown(str(one.get("path") or one.get("hub")))) for one in named) or "none was named"


def score_lines(params: Mapping[str, Any]) -> list[str]:
    """How quality, learnability and reward were made, by params.yaml."""
    quality, rewards = params["quality"], params["rewards"]
    methods = ", ".join(f"{domain} by {method}" for domain, method in quality.get("methods", {}).items())
    judges = [quality[kind] for kind in ("reward_model", "judge") if quality.get(kind)]
    models = ", ".join(f"{shown(str(one.get('model')))} {one.get('revision') or ''}".strip() for one in judges)
    learnability = markdown_text((params.get("learnability") or {}).get("method", "mean_logprob"))
    policies = DatasetSettings(**params.get("dataset") or {}).over(Policies(**params.get("defects") or {}))
    defects = ", ".join(policies.kinds("penalise", "drop"))
    minus = (
        f", minus {rewards.get('penalty', 1.0):g} where an answer has a defect ({markdown_text(defects)})"
        if defects
        else ""
    )
    slope = rewards.get("alpha_slope") or 0.0
    weight = f"; alpha follows the prompt, by a slope of {slope:g}" if slope else ""
    unsolved = rewards.get("unsolved") or 0.0
    plus = f", plus {unsolved:g} quality (0 to 1) as far as the student itself fails" if unsolved else ""
    length = ", of quality freed from what length alone brings" if rewards.get("length_control") else ""
    gates = ", ".join(f"{domain} {least:g}" for domain, least in (rewards.get("gate") or {}).items())
    gated = (
        f" Behind a gate, a least quality ({markdown_text(gates)}), it is the normalised learnability alone of the "
        f"answers that reach it, and 1 below the lowest of these for the others."
    )
    return [
        f"quality: {markdown_text(methods + (f'; model {models}' if models else ''))}. Scales differ by method.",
        f"learnability: {learnability} of the answer under the student before training (mean\\_logprob: nats a token).",
        f"reward: (1 - alpha) quality + alpha learnability, both normalised "
        f"({markdown_text(rewards.get('normalization', 'min_max'))}) over the teachers of one prompt"
        f"{length}{plus}{minus}{weight}.{gated if gates else ''}",
    ]


def limit_lines(export: pl.DataFrame) -> list[str]:
    """What the rows (a column finish_reason) are not good for."""
    cut = export.filter(finish_reason="length").height
    mixed = export.filter(pl.col("teacher_id").str.starts_with(MIX)).height
    return [
        "Language models wrote the answers; they were checked no further than the scores say.",
        *(
            [f"{mixed} rows are of existing data sets (mixes): no model of this project wrote or scored them."]
            * (mixed > 0)
        ),
        "A reward compares answers to one prompt; between prompts it says nothing.",
        f"{cut} of {export.height} answers were cut at the teacher's limit of tokens (finish\\_reason length).",
        "Decontamination finds shared runs of words and near copies, no paraphrase, and only of the sets named above.",
        "The teachers were chosen for one student; for another another choice may be better.",
        "Text is as the teachers and sources wrote it and may hold markup or formulas: treat it as text. Whoever turns "
        "it into a spreadsheet must escape cells that begin with = + - or @.",
    ]


LOAD = """```python
from datasets import load_dataset
from trl import SFTTrainer

dataset = load_dataset("owner/name", split="train")  # or the path of this folder
SFTTrainer(model="...", train_dataset=dataset).train()
```

SFTTrainer takes `prompt` and `completion` where both are there, and its loss is then on the completion only. Trainers
that read `messages` find it. Multi-teacher trainers find in `teacher_id` which teacher a row belongs to."""
CITATION = """```bibtex
@inproceedings{zhang-etal-2026-find,
  title = "Find Your Optimal Teacher: Personalized Data Synthesis via Router-Guided Multi-Teacher Distillation",
  author = "Zhang, Hengyuan and Yang, Shiping and Liang, Xiao and Shang, Chenming and Jiang, Yuxuan and Tao, Chaofan
    and Xiong, Jing and So, Hayden Kwok-Hay and Xie, Ruobing and Chang, Angel X and Wong, Ngai",
  booktitle = "Proceedings of the 64th Annual Meeting of the Association for Computational Linguistics
    (Volume 1: Long Papers)",
  year = "2026",
  url = "https://aclanthology.org/2026.acl-long.666/"
}
```"""

"""A project that was run, and the command that exports it."""

from pathlib import Path
from typing import Any

import polars as pl
from ruamel.yaml import YAML
from typer.testing import CliRunner

from persyn.cli import app
from persyn.dataset import DatasetSettings, build_dataset
from persyn.defects import Policies
from persyn.files import write_json
from persyn.generation import Teacher
from persyn.generation.terms import Licenses
from persyn.schemas import DATASET, LEARNABILITY, PROMPTS, RESPONSES, REWARDS, ROUTES, write_table
from tests.support.tables import prompts_table, responses_table

HOSTILE = [
    "<script>alert(1)</script> {{ 7 * 7 }} ${x}",
    '=HYPERLINK("http://e.vil","x")\n\n---\n# Owned',
    "\u202etxt\x1b[2J\x00 \t\r\n | `b` \U0001f600",
]
PARAMS: dict[str, Any] = {
    "teachers": {
        name: {
            "model": f"model-{name}",
            "license": "MIT",
            "backend": "openai",
            "training": "allowed",
            "sampling": {"max_tokens": 9},
        }
        for name in "ab"
    },
    "prompts": {"num_parallel": 2, "sources": [], "decontaminate": [{"path": "evaluation/x.jsonl"}]},
    "strategies": {"persyn": {"rule": "persyn", "exclude": []}, "strong": {"rule": "strong", "teacher": "a"}},
    "quality": {"methods": {"instruction": "reward_model"}, "reward_model": {"model": "/home/someone/judge"}},
    "rewards": {"alpha": 0.4},
    "student": {"model": "/home/someone/student", "license": "MIT"},
    "licenses": {"allow_forbidden": []},
}


def make(params: dict[str, Any], source: str = "/home/someone/p.jsonl") -> None:
    """Write params.yaml and the tables and metrics of both strategies."""
    YAML().dump(params, Path("params.yaml"))
    teachers = {name: Teacher(**entry) for name, entry in params["teachers"].items()}
    prompts = prompts_table(HOSTILE).sort("prompt_id").with_columns(source=pl.lit(source))
    prompts = prompts.with_columns(parallel=pl.Series([True, True, False]))
    write_table(prompts, "data/prompts.parquet", PROMPTS)
    answers = {name: responses_table(prompts, name, [f"{name}: {text}" for text in HOSTILE]) for name in teachers}
    for name, table in answers.items():
        write_table(table[:2], f"data/responses/{name}.parquet", RESPONSES)
    scored = [(identity, name, 0.5, -1.25, 0.75) for identity in prompts["prompt_id"][:2] for name in teachers]
    write_table(pl.DataFrame(scored, schema=REWARDS, orient="row"), "data/rewards.parquet", REWARDS)
    for name in teachers:
        learned = pl.DataFrame({"prompt_id": prompts["prompt_id"][:2]}).select(
            "prompt_id", teacher=pl.lit(name), learnability=-1.25, num_tokens=pl.lit(7, pl.Int64), truncated=False
        )
        write_table(learned, f"data/learnability/{name}.parquet", LEARNABILITY)
    for strategy, chosen in {"persyn": "aba", "strong": "aaa"}.items():
        strengths = [1.5, 0.25] if strategy == "persyn" else [None, None]
        rows = [(identity, name, *strengths) for identity, name in zip(prompts["prompt_id"], chosen, strict=True)]
        routed = pl.concat(answers[name][place] for place, name in enumerate(chosen))
        write_table(pl.DataFrame(rows, schema=ROUTES, orient="row"), f"data/routes/{strategy}.parquet", ROUTES)
        write_table(routed, f"data/routed/{strategy}.parquet", RESPONSES)
        allowed = Licenses(allow_forbidden=params["licenses"]["allow_forbidden"])
        dataset, counts = build_dataset(prompts, routed, Policies(), teachers, allowed, DatasetSettings())
        write_table(dataset, f"data/dataset/{strategy}.parquet", DATASET)
        write_json(counts, f"metrics/dataset/{strategy}.json")
        share = {name: chosen.count(name) / 3 for name in teachers}
        write_json({"share": share, "entropy": 0.0, "prompts": 3}, f"metrics/allocation/{strategy}.json")
    write_json({"read": 9, "kept": 3, "dropped": {"contaminated": 6}}, "metrics/prompts.json")
    over = {"difference": -0.3, "interval": [-0.4, -0.2], "verdict": "differs"}
    write_json({"hit_at_1": 0.5, "over_majority": over, "placed": {"c": {}}}, "metrics/router.json")


def export(*arguments: str) -> str:
    """What the command prints; raises what it raises."""
    result = CliRunner().invoke(app, ["export", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def load(folder: str) -> Any:
    from datasets import load_dataset

    return load_dataset(folder, split="train")

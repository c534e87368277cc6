"""The code domain: its items can be solved, its tasks score what they say, and it runs through the stages."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from jinja2 import Template
from lm_eval.tasks._yaml_loader import load_yaml
from ruamel.yaml import YAML

from persyn import schemas
from persyn.prompts import PromptSettings, Source, build_prompts
from persyn.schemas import read_table
from persyn.verifiers.execution import passes_tests
from tests.support.tiny import CHATML, build_model, tiny_params, tiny_project

ROOT = Path(__file__).parent.parent
RAW = ROOT / "data" / "raw"
Score = Callable[[dict[str, Any], list[str]], dict[str, float]]

ITEM = {
    "prompt": 'from math import floor\n\n\ndef half(x):\n    return x / 2\n\n\ndef down(x):\n    """Halve, round."""\n',
    "test": "def check(candidate):\n    assert candidate(5) == 2",
    "entry_point": "down",
}
MBPP = {"test_setup_code": "two = 2", "test_list": ["assert add(1, two) == 3", "assert add(0, 0) == 0"]}


def task(name: str) -> dict[str, Any]:
    return load_yaml(ROOT / "tasks" / f"{name}.yaml")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RAW / name).read_text().splitlines()]


@pytest.mark.parametrize(
    ("response", "passes"),
    [
        ("```python\nfrom math import floor\ndef down(x):\n    return floor(x / 2)\n```\nIt works.", 1.0),
        ("def down(x):\n    return floor(half(x))", 1.0),  # what the prompt imports and defines is there
        ("    return floor(half(x))", 1.0),
        ("```python\nhalved = half(x)\nreturn floor(halved)\n```", 1.0),
        ("```\ndef down(x): return floor(half(x))\n```\n```\ndef test():\n    assert down(4) == 2\n```", 1.0),
        ("def down(x):\n    return half(x)", 0.0),
        ("    return None", 0.0),
        ("I would halve it.", 0.0),
        ("", 0.0),
        ("def down(x):\n    raise SystemExit(0)", 0.0),
    ],
)
def test_humaneval_takes_the_whole_function_or_its_body(response: str, passes: float) -> None:
    score: Score = task("humaneval_chat")["process_results"]
    assert score(ITEM, [response]) == {"pass@1": passes}


@pytest.mark.parametrize(("sign", "passes"), [("+", 1.0), ("-", 0.0)])
def test_mbpp_runs_all_asserts(sign: str, passes: float) -> None:
    score: Score = task("mbpp_chat")["process_results"]
    assert score(MBPP, [f"```python\ndef add(a, b):\n    return a {sign} b\n```"]) == {"pass@1": passes}


def test_a_code_task_asks_greedily_once_and_names_its_commit() -> None:
    for name in ("humaneval_chat", "mbpp_chat"):
        config = task(name)
        assert config["generation_kwargs"]["do_sample"] is False
        assert len(config["dataset_kwargs"]["revision"]) == 40
        assert "repeats" not in config
    assert "revision" not in task("persyn_code")["dataset_kwargs"], "an include is not merged into"


def test_every_prompt_is_solved_by_its_solution_and_by_no_stub() -> None:
    for row in rows("code.jsonl")[::5]:
        header = row["solution"].split("\n")[0]
        argument = header[header.index("(") + 1 : header.index(")")]
        assert passes_tests(row["prompt"], row["solution"], row["reference"]) == 1, row
        assert passes_tests(row["prompt"], f"{header}\n    return {argument}", row["reference"]) == 0, row


def test_every_item_is_solved_by_its_solution_and_by_no_stub() -> None:
    score: Score = task("persyn_code")["process_results"]
    items = rows("evaluation/code.jsonl")
    assert len({item["entry_point"] for item in items}) == 24
    for item in items:
        argument = item["prompt"][item["prompt"].index("(") + 1 : item["prompt"].index(")")]
        assert score(item, [item["canonical_solution"]]) == {"pass@1": 1.0}, item
        assert score(item, [f"    return {argument}"]) == {"pass@1": 0.0}, item


def test_no_prompt_is_an_evaluation_item() -> None:
    settings = PromptSettings(
        sources=[Source(path="code.jsonl", domain="code", reference="reference")],
        decontaminate=[Source(path="evaluation/code.jsonl")],
        num_parallel=1,
        ngram=8,
    )
    _, counts = build_prompts(RAW, settings)
    assert (counts["kept"], counts["dropped"]) == (120, {})


def test_the_code_domain_runs_through_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(tmp_path / "tiny", chat_template=CHATML)
    params = tiny_params(model)
    params["prompts"]["sources"] = [{"path": "code.jsonl", "domain": "code", "reference": "reference", "limit": 8}]
    params["prompts"]["decontaminate"] = [{"path": "evaluation/code.jsonl"}]
    params["quality"]["methods"] = {"code": "unit_tests"}
    params["evaluation"]["tasks"] = ["persyn_code"]
    monkeypatch.chdir(tiny_project(tmp_path / "project", params))
    teacher, prompts = next(iter(params["teachers"])), "data/prompts.parquet"
    for stage, *arguments in (
        ("prompts", "data/raw", prompts, "metrics/prompts.json"),
        ("responses", teacher, prompts, "data/r.parquet"),
        ("quality", teacher, prompts, "data/r.parquet", "data/q.parquet"),
        ("evaluation", model, "tasks", "metrics/e.json", "data/e.parquet"),
    ):
        import_module(f"stages.{stage}").main(*arguments)

    assert read_table("data/q.parquet", schemas.QUALITY)["quality"].to_list() == [0.0] * 8
    [(name, scores)] = json.loads(Path("metrics/e.json").read_text()).items()
    assert (name, scores) == ("persyn_code", {"pass@1": {"value": 0.0, "stderr": 0.0, "n": 2, "cut": 2}})
    samples = read_table("data/e.parquet", schemas.SAMPLES)
    assert samples["metric"].to_list() == ["pass@1"] * 2
    assert samples.select(pl.col("sample_id").n_unique()).item() == 2


@pytest.mark.parametrize(
    ("number", "row"),
    [
        (
            0,
            {
                "input": "Write add.",
                "unit_tests": json.dumps(['\nassert add("a", "b") == "ab"\n', "x = 1\nassert add(x, 2) == 3\n"]),
            },
        ),
        (1, {"text": "Write add.", "test_setup_code": "", "test_list": ['assert add("a", "b") == "ab"', "add(1, 2)"]}),
    ],
)
def test_the_profile_makes_prompts_and_tests_of_public_rows(number: int, row: dict[str, Any]) -> None:
    source = YAML(typ="safe", pure=True).load(ROOT / "profiles" / "code" / "params.yaml")["prompts"]["sources"][number]
    prompt, reference = (Template(source[field]).render(row) for field in ("prompt", "reference"))
    assert prompt.startswith("Write add.\n\nAnswer with")
    assert '\nassert add("a", "b") == "ab"' in prompt
    assert passes_tests(prompt, "def add(a, b):\n    return a + b", reference) == 1
    assert passes_tests(prompt, "def add(a, b):\n    return 'ab'.strip(a)", reference) == 0

"""The whole chain on tiny random models: every stage's main(), from raw prompts to the comparison."""

import json
from importlib import import_module
from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML

from benchmarks.tiny import build_model, tiny_params, tiny_project
from persyn import schemas
from persyn.models import packaged_model
from persyn.schemas import InputError, read_table
from stages import PARAMS


def run_stage(name: str, *arguments: str) -> None:
    import_module(f"stages.{name}").main(*arguments)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped parameters, every model replaced by a tiny random one."""
    folder = tiny_project(tmp_path / "project", tiny_params(build_model(tmp_path / "tiny")))
    monkeypatch.chdir(folder)
    return folder


def test_from_raw_prompts_to_the_comparison(project: Path) -> None:
    params = YAML(typ="safe", pure=True).load(project / PARAMS)
    teachers, strategies = list(params["teachers"]), list(params["strategies"])
    prompts = "data/prompts.parquet"
    run_stage("prompts", "data/raw", prompts, "metrics/prompts.json")
    for teacher in teachers:
        responses = f"data/responses/{teacher}.parquet"
        run_stage("responses", teacher, prompts, responses)
        run_stage("quality", prompts, responses, f"data/quality/{teacher}.parquet")
        run_stage("learnability", prompts, responses, f"data/learnability/{teacher}.parquet")
    run_stage("defects", prompts, "data/responses", "data/defects.parquet", "metrics/defects.json")
    scored = "data/quality", "data/learnability", "data/defects.parquet"
    run_stage("rewards", *scored, "data/rewards.parquet", "metrics/rewards.json")
    run_stage("pairs", "data/rewards.parquet", "data/pairs.parquet")
    run_stage("router", prompts, "data/rewards.parquet", "data/pairs.parquet", "models/router", "metrics/router.json")
    for name in strategies:
        routes, routed = f"data/routes/{name}.parquet", f"data/routed/{name}.parquet"
        run_stage("routes", name, prompts, "models/router", routes, f"metrics/allocation/{name}.json")
        run_stage("routed", prompts, routes, "data/responses", routed)
        run_stage("dataset", prompts, routed, f"data/dataset/{name}.parquet", f"metrics/d-{name}.json")
        run_stage("student", f"data/dataset/{name}.parquet", f"models/student/{name}", f"metrics/{name}.csv")
        scores, samples = f"metrics/evaluation/{name}.json", f"data/evaluation/{name}.parquet"
        run_stage("evaluation", f"models/student/{name}", "tasks", scores, samples)
    run_stage("comparison", "data/evaluation", "metrics/comparison.json", "metrics/comparison.md")
    run_stage("cost", prompts, "data/responses", "data/routed", "metrics/cost.json")

    for table in ("rewards", "pairs", "prompts", "defects"):
        read_table(f"data/{table}.parquet", getattr(schemas, table.upper()))
    answers = read_table("data/routed/persyn.parquet", schemas.RESPONSES)
    chosen = read_table("data/routes/persyn.parquet", schemas.ROUTES)
    assert answers.select("prompt_id", "teacher").equals(chosen.select("prompt_id", "teacher"))
    assert set(answers["prompt_id"]) == set(read_table(prompts, schemas.PROMPTS)["prompt_id"])
    parallel = pl.concat([pl.read_parquet(f"data/responses/{teacher}.parquet") for teacher in teachers])
    reused = answers.join(parallel, on=["prompt_id", "teacher"], how="inner", validate="1:1")
    assert reused.height == 8, "a parallel prompt is not answered twice"
    assert reused["response"].equals(reused["response_right"])
    measured = json.loads(Path("metrics/evaluation/persyn.json").read_text())
    assert measured["persyn_ifeval"]["prompt_level_strict_acc"]["n"] == 2
    assert measured["persyn_math"]["math_verify"]["n"] == 2
    comparison = json.loads(Path("metrics/comparison.json").read_text())
    assert comparison.keys() == set(strategies) - {"persyn"}
    assert json.loads(Path("metrics/cost.json").read_text())["generate_then_select"]["calls"] == 36
    assert not list(project.rglob("*.partial"))


def test_unknown_tasks_teachers_and_packages_are_named(project: Path) -> None:
    params = YAML(typ="safe", pure=True).load(project / PARAMS)
    params["evaluation"]["tasks"] = ["persyn_maths"]
    YAML().dump(params, project / PARAMS)
    model = params["student"]["model"]
    with pytest.raises(InputError, match=r"\['persyn_maths'\]"):
        run_stage("evaluation", model, "tasks", "metrics/e.json", "data/e.parquet")
    with pytest.raises(InputError, match=r"teachers.smollm2-ters is missing.*did you mean smollm2-terse\?"):
        run_stage("responses", "smollm2-ters", "data/prompts.parquet", "data/r.parquet")
    with pytest.raises(InputError, match="there is no packaged model 'gpt2'"):
        packaged_model("gpt2")
    assert not (project / "metrics").exists()

"""What stands beside the strategies: the student before any tuning and finished models, each evaluated once."""

import json
import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ruamel.yaml import YAML
from transformers import AutoTokenizer

import persyn.evaluation
import stages.beside
import stages.comparison
from persyn.chat import BASE_TEMPLATE, encode_prompt, student_tokenizer
from persyn.errors import InputError
from persyn.evaluation import EvaluationSettings, EvaluationSpeed, Finished, as_student, evaluate_once
from persyn.models import load_tokenizer
from persyn.project.params import check_params
from persyn.project.pins import hub_entries
from persyn.schemas import SAMPLES, write_table
from tests.support.tiny import build_model, tiny_params

TASK = "task: sums\ndataset_kwargs:\n  data_files:\n    test: items/sums.jsonl\n"


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A project with a task, and the models that were evaluated in it, by an evaluation that loads none."""
    monkeypatch.chdir(tmp_path)
    for folder in ("tasks", "items"):
        Path(folder).mkdir()
    Path("tasks/sums.yaml").write_text(TASK)
    Path("items/sums.jsonl").write_text('{"sum": "1+1"}')
    asked: list[str] = []

    def evaluate(folder: Path, *how: Any) -> Any:
        asked.append(folder.name)
        rows = [("sums", f"item {number}", "acc", float(number < 4), "2", False) for number in range(8)]
        scores = {"sums": {"acc": {"value": 0.5, "stderr": 0.1, "n": 8, "cut": 0}}}
        return scores, pl.DataFrame(rows, schema=SAMPLES, orient="row")

    monkeypatch.setattr(persyn.evaluation, "evaluate_student", evaluate)
    return asked


def run_beside(params: dict[str, Any]) -> dict[str, Any]:
    YAML().dump(params, Path("params.yaml"))
    stages.beside.main("tasks", "data/beside", "metrics/beside.json")
    found: dict[str, Any] = json.loads(Path("metrics/beside.json").read_text())
    return found


def test_each_model_is_evaluated_once_until_the_task_changes(base_model: str, evaluated: list[str]) -> None:
    params = tiny_params(base_model)
    assert run_beside(params).keys() == {"untuned"}
    assert evaluated == ["untuned"]
    params["evaluation"]["beside"] = {"other": {"model": build_model(Path("other"), family="qwen2")}}
    assert run_beside(params) == dict.fromkeys(["untuned", "other"], run_beside(params)["untuned"])
    assert evaluated == ["untuned", "other"], "the first again would be paid for twice"
    assert pl.read_parquet("data/beside/untuned.parquet").equals(pl.read_parquet("data/beside/other.parquet"))
    del params["evaluation"]["beside"]["other"]
    params["evaluation"]["beside"]["same"] = {"model": base_model}
    run_beside(params)
    assert evaluated == ["untuned", "other"], "the same model under another name"
    Path("items/sums.jsonl").write_text('{"sum": "1+2"}')
    run_beside(params)
    assert evaluated[2:] == ["untuned"]
    params["evaluation"]["max_tokens"] = 5
    run_beside(params)
    assert evaluated[3:] == ["untuned"]


def test_they_are_compared_as_strategies_are(base_model: str, evaluated: list[str]) -> None:
    params = tiny_params(base_model)
    run_beside(params)
    samples = pl.read_parquet("data/beside/untuned.parquet")
    for name in params["strategies"]:
        write_table(samples.with_columns(value=pl.lit(1.0)), f"data/evaluation/{name}.parquet", SAMPLES)
    stages.comparison.main("data/evaluation", "data/beside", "comparison.json", "comparison.md")
    comparison = json.loads(Path("comparison.json").read_text())
    assert comparison.keys() == {"strong", "random", "untuned"}
    found = comparison["untuned"]["sums"]["acc"]
    assert (found["difference"], found["p"], found["p_holm"]) == (0.5, 0.125, 0.375), "three are compared"
    assert "| untuned " in Path("comparison.md").read_text()


def test_launched_processes_evaluate_one_model_each(
    base_model: str, evaluated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, launched = tiny_params(base_model), list[tuple[str, ...]]()
    Path("ddp.yaml").touch()
    params["speed"]["evaluation"]["launch"] = "ddp.yaml"

    def launch(*words: str) -> None:
        launched.append(words)
        with monkeypatch.context() as patch:
            patch.setenv("PERSYN_LAUNCHED", "1")
            stages.beside.main(*words[2:])

    monkeypatch.setattr(stages.beside, "launch_processes", launch)
    assert run_beside(params).keys() == {"untuned"}
    assert launched == [("beside", "ddp.yaml", "tasks", "data/beside", "metrics/beside.json", "untuned")]
    run_beside(params)
    assert len(launched) == len(evaluated) == 1


def test_of_several_processes_one_goes_on(
    base_model: str, evaluated: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    how: Any = Path(base_model), "tasks", EvaluationSettings(tasks=["sums"]), EvaluationSpeed(), "none"
    first = evaluate_once(*how)
    with caplog.at_level(logging.INFO, "persyn"):
        again = evaluate_once(*how)
    assert "was evaluated before on these tasks" in caplog.text
    assert again[0] == first[0]
    assert again[1].equals(first[1])
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        evaluate_once(*how)
    assert len(evaluated) == 1


@pytest.mark.parametrize("model", ["base_model", "chat_model"])
def test_a_model_is_asked_as_a_student_trained_from_it(model: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    trained = student_tokenizer(load_tokenizer(folder))
    with as_student("untuned", Finished(model=folder), "2025-01-01") as untuned:
        assert untuned.name == "untuned"
        saved = AutoTokenizer.from_pretrained(untuned)
        weights = (untuned / "model.safetensors").resolve()
    assert weights == (Path(folder) / "model.safetensors").resolve()
    assert (saved.chat_template, saved.eos_token) == (trained.chat_template, trained.eos_token)
    assert model == "chat_model" or saved.chat_template == BASE_TEMPLATE
    assert encode_prompt(saved, "Hi") == encode_prompt(trained, "Hi")
    assert AutoTokenizer.from_pretrained(folder).eos_token == ("<|im_end|>" if model == "chat_model" else "<eos>")


def test_a_model_that_cannot_be_used_is_named(base_model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^mine \(nowhere\): model 'nowhere' is neither an existing folder"):
        as_student("mine", Finished(model="nowhere"), "2025-01-01").__enter__()
    load_tokenizer(base_model).save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match=r"^mine \(.*bare\): there are no \*\.safetensors in"):
        as_student("mine", Finished(model=str(tmp_path / "bare")), "2025-01-01").__enter__()


def test_names_are_told_apart_from_strategies(base_model: str) -> None:
    params = tiny_params(base_model)
    params["evaluation"]["beside"] = {"strong": {"model": "m"}, "untuned": {"model": "m"}, "fine": {"model": "m"}}
    params["strategies"]["untuned"] = {"rule": "random"}
    with pytest.raises(InputError) as error:
        check_params(params)
    assert list(error.value.args) == [
        "params.yaml: strategies.untuned has the name of the student before any tuning; choose another",
        "params.yaml: evaluation.beside.strong has the name of a strategy; choose another",
        "params.yaml: evaluation.beside.untuned has the name of the student before any tuning; choose another",
    ]


def test_commits_of_finished_models_are_pinned_too(base_model: str) -> None:
    params = tiny_params(base_model)
    params["evaluation"]["beside"] = {"other": {"model": "owner/name"}}
    assert [entry.label for entry in hub_entries(params)] == ["evaluation.beside.other.revision"]

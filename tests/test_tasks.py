"""The evaluation tasks on a tiny model, their data sets replaced by the few rows of rehearsal/rows."""

import json
from pathlib import Path
from typing import Any

import lm_eval
import polars as pl
import pytest
from ruamel.yaml import YAML

from persyn.errors import InputError
from persyn.evaluation import EvaluationSettings, EvaluationSpeed, evaluate_student
from rehearsal.tasks import ROWS, local_tasks
from tests.support.modules import load_module
from tests.support.tiny import ROOT

METRICS = {
    "gsm8k_5shot": {"math_verify"},
    "humaneval_chat": {"pass@1"},
    "ifeval": {f"{level}_level_{mode}_acc" for level in ("prompt", "inst") for mode in ("strict", "loose")},
    "livebench_instruction": {"score"},
    "livebench_math": {"score"},
    "livebench_reasoning": {"score"},
    "math": {"exact_match", "math_verify"},
    "math500": {"exact_match", "math_verify"},
    "mbpp_chat": {"pass@1"},
    "svamp": {"math_verify"},
    "truthfulqa_mc2": {"acc"},
}
GROUPED = [task for task in METRICS if not task.startswith("livebench")] + ["livebench_subset"]


@pytest.fixture(scope="module")
def evaluated(chat_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], pl.DataFrame, Any]:
    """Scores, SAMPLES and lm-eval's own results of every task."""
    kept: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("PERSYN_CACHE", str(cache))
        patch.setattr(lm_eval, "simple_evaluate", _keeping(kept))
        folder = local_tasks(ROOT / "tasks", ROWS, cache / "tasks")
        settings = EvaluationSettings(tasks=GROUPED, max_tokens=4, limit=2)
        scores, samples = evaluate_student(chat_model, folder, settings, EvaluationSpeed(batch_size=2))
    return scores, samples, kept[0]


def _keeping(kept: list[Any]) -> Any:
    simple_evaluate = lm_eval.simple_evaluate

    def keep(**arguments: Any) -> Any:
        kept.append(simple_evaluate(**arguments))
        return kept[0]

    return keep


def test_every_task_gives_its_metrics_and_every_item_its_row(
    evaluated: tuple[dict[str, Any], pl.DataFrame, Any],
) -> None:
    scores, samples, _ = evaluated
    assert {task: set(metrics) for task, metrics in scores.items() if task != "livebench_subset"} == METRICS
    assert {value["n"] for task in METRICS for value in scores[task].values()} == {2}
    assert all(0 <= value["value"] <= 1 for metrics in scores.values() for value in metrics.values())
    rows = samples.group_by("task", "metric").agg(pl.col("sample_id").n_unique()).rows()
    assert {task for task, _, _ in rows} == set(METRICS)
    assert {n for _, _, n in rows} == {2}


def test_livebench_is_the_mean_of_its_categories(evaluated: tuple[dict[str, Any], pl.DataFrame, Any]) -> None:
    scores = evaluated[0]
    categories = [scores[task]["score"]["value"] for task in METRICS if task.startswith("livebench")]
    assert scores["livebench_subset"]["score"]["value"] == pytest.approx(sum(categories) / 3)
    assert scores["livebench_subset"]["score"]["n"] == 6


def test_five_worked_examples_are_shown_as_turns_of_the_chat_and_elsewhere_none(
    evaluated: tuple[dict[str, Any], pl.DataFrame, Any],
) -> None:
    results = evaluated[2]
    for task, samples in results["samples"].items():
        prompt = samples[0]["arguments"][0][0]
        shots = 5 if task == "gsm8k_5shot" else 0
        assert prompt.count("<|im_start|>assistant") == shots + 1, task
        assert prompt.count("<|im_start|>user") == shots + 1, task
    prompt = results["samples"]["gsm8k_5shot"][0]["arguments"][0][0]
    assert prompt.count("The answer is \\boxed{") == 5
    assert "\\boxed{5000}" in prompt  # no thousands separator
    assert "<<" not in prompt
    assert "####" not in prompt


def test_choices_are_answered_by_the_likeliest(evaluated: tuple[dict[str, Any], pl.DataFrame, Any]) -> None:
    chosen = evaluated[1].filter(task="truthfulqa_mc2")["response"]
    asked = [json.loads(line) for line in (ROWS / "truthfulqa--truthful_qa--multiple_choice.jsonl").open()][:2]
    assert all(answer in item["mc2_targets"]["choices"] for answer, item in zip(chosen, asked, strict=True))


def test_a_task_of_several_filters_and_of_repeated_items_keeps_them_apart(chat_model: str, tmp_path: Path) -> None:
    rows, tasks = tmp_path / "rows", tmp_path / "source"
    rows.mkdir()
    tasks.mkdir()
    first, *others = (ROWS / "openai--gsm8k--main.jsonl").read_text().splitlines(keepends=True)
    (rows / "openai--gsm8k--main.jsonl").write_text("".join([first, first, *others]))
    (tasks / "gsm8k.yaml").write_text(
        "include: ../gsm8k/gsm8k.yaml\ntask: gsm8k\ndataset_path: openai/gsm8k\ndataset_name: main\n"
    )
    folder = local_tasks(tasks, rows, tmp_path / "tasks")
    settings = EvaluationSettings(tasks=["gsm8k"], max_tokens=4, limit=2)
    scores, samples = evaluate_student(chat_model, folder, settings, EvaluationSpeed(batch_size=2))
    assert set(scores["gsm8k"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert samples.height == samples.select("metric", "sample_id").n_unique() == 4
    assert samples.group_by("sample_id").agg(pl.col("response").n_unique())["response"].to_list() == [1, 1]
    assert "[invalid]" not in samples["response"], "what was answered, not what a filter makes of it"


def test_hub_data_sets_are_pinned_or_local() -> None:
    for path in (ROOT / "tasks").glob("*.yaml"):
        task = YAML().load(path)
        if task.get("dataset_path", "json") != "json":
            assert len(task["dataset_kwargs"]["revision"]) == 40, path.name


def test_a_data_set_without_local_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"openai--gsm8k--main\.jsonl"):
        local_tasks(ROOT / "tasks", tmp_path, tmp_path / "tasks")


def test_gsm8k_and_svamp_take_the_number_and_not_its_spelling() -> None:
    module = _module("word_problems")
    gsm8k = {"question": "?", "answer": "4*1250=<<4*1250=5000>>5000\n#### 5,000"}
    assert module.score_gsm8k(gsm8k, ["so \\boxed{5,000}."]) == {"math_verify": 1.0}
    assert module.score_gsm8k(gsm8k, ["so \\boxed{500}."]) == {"math_verify": 0.0}
    assert module.score_svamp({"Question": "?", "Answer": "9.0"}, ["\\boxed{9}"]) == {"math_verify": 1.0}


@pytest.mark.parametrize(
    ("response", "score"),
    [("one bus serves two schools", 1.0), ("one bus, two schools", 0.25), ("One bus, two schools", 0.0)],
)
def test_livebench_instruction_counts_all_and_each(response: str, score: float) -> None:
    doc = {
        "turns": ["?"],
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
        "kwargs": [{"num_words": None}, {"num_words": None}],
    }
    thought = "<think>A, B</think>"
    assert _module("livebench").score_instruction(doc, [thought + response]) == {"score": score}


@pytest.mark.parametrize(
    ("kind", "gold", "right", "wrong"),
    [
        ("amc_12a_2024", "B", "The answer is BBBBB.", "AAAAA"),
        ("smc", "B", "<solution>B</solution>", "**C**"),
        ("updated_amc_12b_2023", "B", "\\boxed{\\text{(B)}}", "B or\nC"),
        ("aime_i_2024", "073", "so it is\n**073**", "074"),
        ("amps_hard_integral", "x^2", "\\boxed{x^2 + C}", "\\boxed{x^3 + C}"),
    ],
)
def test_livebench_math_reads_each_kind_of_answer(kind: str, gold: str, right: str, wrong: str) -> None:
    score, doc = _module("livebench").score_math, {"turns": ["?"], "subtask": kind, "ground_truth": gold}
    assert score(doc, [right]) == {"score": 1.0}
    assert score(doc, [wrong]) == {"score": 0.0}


@pytest.mark.parametrize(
    ("task", "gold", "response", "score"),
    [
        ("web_of_lies_v2", "yes, no, yes", "Not **no, no, no**. **Answer:** **Yes**, no, yes.", 1.0),
        ("web_of_lies_v2", "yes, no, yes", "**yes, no, yes**? No: **yes, yes, yes**", 0.0),
        ("zebra_puzzle", "bo, tea, 3", "<solution>Bo, tea, 3</solution>", 1.0),
        ("zebra_puzzle", "bo, tea, 3", "<solution>Bo, milk</solution>", 1 / 6),
        ("spatial", "4", "**Count:** it is **4**.", 1.0),
        ("spatial", "4", "It is **14**.", 0.0),
    ],
)
def test_livebench_reasoning_takes_the_last_answer(task: str, gold: str, response: str, score: float) -> None:
    doc = {"task": task, "ground_truth": gold}
    assert _module("livebench").score_reasoning(doc, [response]) == {"score": pytest.approx(score)}


def _module(name: str) -> Any:
    return load_module(ROOT / "tasks" / f"{name}.py")

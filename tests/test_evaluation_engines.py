"""The engines of the evaluation: their knobs, several processes, and what transformers alone must do. See also
test_evaluation_vllm.py.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from lm_eval.api.instance import Instance
from ruamel.yaml import YAML

import stages.evaluation
from persyn.errors import InputError
from persyn.evaluation import EvaluationSettings, EvaluationSpeed, _load_student, evaluate_student
from persyn.evaluation_model import EvaluatedStudent, load_in_vllm
from persyn.messages import user_message
from persyn.project.params import read_params
from persyn.settings import VLLMKnobs
from tests.support.tiny import CHATML, ROOT, build_model, tiny_params

QUESTIONS = ["Hi", "Name two colours of the rainbow, and say which of them you like", "What is 2 + 2?"]


@pytest.mark.parametrize(
    ("speed", "message"),
    [
        ({"engine": "vllm", "batch_size": 4}, "speed.evaluation.batch_size is a knob of the engine transformers"),
        ({"engine": "vllm", "launch": "a.yaml"}, "speed.evaluation.launch is a knob of the engine transformers"),
        ({"max_num_seqs": 4}, "speed.evaluation.max_num_seqs is a knob of the engine vllm, but engine is transformers"),
        ({"engine": "vlm"}, "speed.evaluation.engine is 'vlm'"),
    ],
)
def test_a_knob_of_the_other_engine_is_refused(speed: dict[str, Any], message: str, tmp_path: Path) -> None:
    params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    params["speed"]["evaluation"] = speed
    YAML().dump(params, tmp_path / "params.yaml")
    with pytest.raises(InputError, match=message):
        read_params(tmp_path / "params.yaml")


def test_null_is_no_knob() -> None:
    assert EvaluationSpeed(engine="vllm", launch=None).engine == "vllm"


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_student_has_the_precision_that_is_asked_for(dtype: Any, chat_model: str) -> None:
    speed = EvaluationSpeed(dtype=dtype)
    student = _load_student(chat_model, EvaluationSettings(tasks=["persyn_math"]), speed, "none")
    assert str(student.model.dtype) == f"torch.{dtype or 'float32'}"


def test_what_is_not_installed_is_named(chat_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"engine vllm needs vllm, which is not installed; run `pip install 'persyn\["):
        load_in_vllm(chat_model, VLLMKnobs())


def changed_model(folder: Path, **rules: Any) -> str:
    """The tiny model with more in its generation_config.json."""
    model = build_model(folder, chat_template=CHATML)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | rules))
    return model


def responses(model: str, batch_size: int, **how: Any) -> list[str]:
    student: Any = EvaluatedStudent(pretrained=model, device="cpu", dtype="float32", batch_size=batch_size)
    prompts = [student.apply_chat_template(user_message(question)) for question in QUESTIONS]
    asked = [
        Instance("generate_until", {}, (prompt, {"until": [], "max_gen_toks": 12, **how}), 0, metadata=("a_task", n, 1))
        for n, prompt in enumerate(prompts)
    ]
    return student.generate_until(asked, True)


def test_a_repetition_penalty_counts_no_padding(tmp_path: Path) -> None:
    """A row is padded with a token of its own, so a penalty finds nothing in the padding that is not in the row."""
    model = changed_model(tmp_path, repetition_penalty=50.0)
    assert responses(model, 1) == responses(model, 3)
    plain = build_model(tmp_path / "plain", chat_template=CHATML)
    assert responses(plain, 3) != responses(model, 3), "and the student's files are followed"
    student: Any = EvaluatedStudent(pretrained=plain, device="cpu", dtype="float32", batch_size=3)
    prompts = [student.apply_chat_template(user_message(question)) for question in QUESTIONS]
    ids, mask = student.tok_batch_encode(prompts)
    rows = zip(ids, mask, prompts, strict=True)
    assert all(set(row.tolist()) == set(prompt.ids) for row, _, prompt in rows)
    assert [int(row.sum()) for row in mask] == [len(prompt.ids) for prompt in prompts]


def test_the_students_files_do_not_lengthen_a_response(tmp_path: Path) -> None:
    assert responses(changed_model(tmp_path / "1", max_new_tokens=40), 3) == responses(
        build_model(tmp_path / "2", chat_template=CHATML), 3
    )


def test_a_stop_text_that_is_a_special_token_ends_its_row(chat_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    student: Any = EvaluatedStudent(pretrained=chat_model, device="cpu", dtype="float32", batch_size=3)

    def generate(input_ids: torch.Tensor, **how: Any) -> torch.Tensor:
        given.append(how["eos_token_id"])
        return input_ids

    monkeypatch.setattr(student.model, "generate", generate)
    prompt = student.apply_chat_template(user_message("Hi"))
    for until in (["\n\n"], ["<bos>", "\n\n"]):
        request = Instance("generate_until", {}, (prompt, {"until": until}), 0, metadata=("a_task", 0, 1))
        student.generate_until([request], True)
    ends = given[0]
    assert given[1] == sorted([*ends, student.tokenizer.bos_token_id])


@pytest.mark.slow
def test_two_processes_share_the_items(chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage launches itself. The files are equal to the byte: an odd number of items, and means and errors too."""
    params = tiny_params(chat_model)
    params["evaluation"] |= {"tasks": ["persyn_ifeval"], "limit": 5, "max_tokens": 6}
    monkeypatch.chdir(tmp_path)
    for name in ("data", "tasks", "persyn", "stages"):
        Path(name).symlink_to(ROOT / name)
    for out, launch in (("1", None), ("2", str(ROOT / "configs/accelerate/cpu.yaml"))):
        monkeypatch.setenv("PERSYN_CACHE", f"cache {out}")  # what was evaluated once is not evaluated again
        params["speed"]["evaluation"] = {"batch_size": 2, "launch": launch}
        YAML().dump(params, Path("params.yaml"))
        arguments = [chat_model, "tasks", f"{out}.json", f"{out}.parquet"]
        if launch:
            subprocess.run([sys.executable, "-m", "stages.evaluation", *arguments], check=True)
        else:
            stages.evaluation.main(*arguments)
    assert Path("1.json").read_bytes() == Path("2.json").read_bytes()
    assert Path("1.parquet").read_bytes() == Path("2.parquet").read_bytes()
    assert pl.read_parquet("2.parquet")["sample_id"].n_unique() == 5


def test_more_processes_than_items_are_refused(chat_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    settings = EvaluationSettings(tasks=["persyn_ifeval"], limit=3)
    with pytest.raises(InputError, match=r"launch starts 4 processes, but evaluation.limit leaves 3 items"):
        evaluate_student(chat_model, "tasks", settings, EvaluationSpeed())

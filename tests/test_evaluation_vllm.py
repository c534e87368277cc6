"""A student evaluated by vLLM's CPU build is asked, stopped and scored as by transformers. Skipped without vLLM."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from persyn.chat import student_tokenizer
from persyn.errors import InputError
from persyn.evaluation import EvaluationSettings, EvaluationSpeed, evaluate_student
from persyn.evaluation_model import EvaluatedStudent, load_in_vllm
from persyn.messages import Message, user_message
from persyn.models import load_causal_lm, load_tokenizer
from persyn.settings import Thinking, VLLMKnobs
from tests.support.texts import ATTACKS
from tests.support.ties import TIE, gap
from tests.support.tiny import CHATML, ROOT, build_model

pytest.importorskip("vllm")
os.environ.update({"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"})

CONVERSATIONS: list[list[Message]] = [
    *(user_message(text) for text in ("Hi", "  What is 2 + 2?\n\n", "東京の天気は。", *ATTACKS[:4])),
    [{"role": "system", "content": "Be brief."}, *user_message("Name two colours of the rainbow.")],
    [*user_message("1?"), {"role": "assistant", "content": "One."}, *user_message("2?")],
]
KNOBS = VLLMKnobs(max_num_seqs=4)


def in_transformers(model: str, thinking: Thinking = "none") -> Any:
    return EvaluatedStudent(thinking, pretrained=model, device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model of a head size that vLLM's CPU build has kernels for, with a penalty in its files."""
    folder = tmp_path_factory.mktemp("model")
    build_model(folder, chat_template=CHATML, head_dim=32)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"repetition_penalty": 1.3, "max_new_tokens": 40}))
    return str(folder)


@pytest.fixture(scope="module")
def engines(model: str) -> Iterator[tuple[Any, Any]]:
    """The same student in transformers and in vLLM."""
    engine = load_in_vllm(model, KNOBS)
    yield in_transformers(model), engine
    engine.close()


def requests(student: Any, conversations: list[list[Message]] = CONVERSATIONS, **how: Any) -> list[Instance]:
    how = {"until": [], "max_gen_toks": 16, **how}
    prompts = [student.apply_chat_template(messages) for messages in conversations]
    return [
        Instance("generate_until", {}, (prompt, dict(how)), 0, metadata=("a_task", n, 1))
        for n, prompt in enumerate(prompts)
    ]


def test_the_engine_reads_the_same_tokens(engines: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, engine = engines
    seen: list[list[int]] = []
    generate = engine.model.generate

    def noting(prompts: list[Any], **how: Any) -> Any:
        outputs = generate(prompts, **how)
        seen.extend(list(output.prompt_token_ids) for output in outputs)
        return outputs

    monkeypatch.setattr(engine.model, "generate", noting)
    engine.generate_until(requests(engine), True)
    assert sorted(seen) == sorted(plain.tok_encode(request.args[0]) for request in requests(plain))
    assert engine.max_length == plain.max_length == 1024
    assert engine.max_gen_toks == plain.max_gen_toks


def test_it_writes_the_same(engines: tuple[Any, Any]) -> None:
    """Greedy, under the penalty of the student's files, in fp32; with stop texts that occur, and a special one."""
    plain, engine = engines
    whole = plain.generate_until(requests(plain), True)
    assert engine.generate_until(requests(engine), True) == whole
    assert len(set(whole)) == len(whole)
    stops = [whole[0][3:5], whole[1][4:6], "<bos>", "never said"]
    cut = plain.generate_until(requests(plain, until=stops), True)
    assert engine.generate_until(requests(engine, until=stops), True) == cut
    assert cut != whole
    engine_cut = engine.generate_until(requests(engine, until=stops), True)
    unended = [response.cut for response in cut]
    assert [response.cut for response in engine_cut] == unended
    assert unended[0] is False, "a stop text ends a response"
    assert any(response.cut for response in whole)
    for how in ({"max_gen_toks": 5}, {"repetition_penalty": 1.0}, {"do_sample": False, "temperature": 0.0}):
        found = engine.generate_until(requests(engine, **how), True)
        expected = plain.generate_until(requests(plain, **how), True)
        assert found == expected
        assert [response.cut for response in found] == [response.cut for response in expected]


def test_it_scores_the_same(engines: tuple[Any, Any]) -> None:
    plain, engine = engines

    def score(student: Any) -> list[tuple[float, bool]]:
        prompt = student.apply_chat_template(user_message("2 + 2?"))
        pairs = [(prompt, choice) for choice in ("Four", "Five <|im_end|>", "東京")]
        asked = [Instance("loglikelihood", {}, pair, 0, metadata=("a_task", 0, 1)) for pair in pairs]
        text = Instance("loglikelihood_rolling", {}, ("A text without a prompt.",), 0, metadata=("a_task", 0, 1))
        return [*student.loglikelihood(asked, True), (student.loglikelihood_rolling([text], True)[0], False)]

    for found, expected in zip(score(engine), score(plain), strict=True):
        assert found[0] == pytest.approx(expected[0], abs=1e-3)
        assert found[1] == expected[1]


def test_what_does_not_fit_and_what_it_cannot_do_is_refused(engines: tuple[Any, Any]) -> None:
    _, engine = engines
    long = [user_message("word " * 2000)]
    with pytest.raises(InputError, match=r"1 of 1 prompts do not fit .* 1024 tokens.*\.engine to transformers"):
        engine.generate_until(requests(engine, long), True)
    text = Instance("loglikelihood_rolling", {}, ("word " * 2000,), 0, metadata=("a_task", 0, 1))
    with pytest.raises(InputError, match=r"1 of 1 prompts do not fit"):
        engine.loglikelihood_rolling([text], True)
    with pytest.raises(InputError, match=r"vLLM refuses the generation_kwargs of a task .*num_beams"):
        engine.generate_until(requests(engine, num_beams=4), True)


def test_drawn_responses_are_drawn_under_the_rules_of_transformers(
    engines: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    _, engine = engines
    how, _, most = engine.modify_gen_kwargs({"temperature": 0.7, "do_sample": True, "top_p": 0.5, "max_gen_toks": 9})
    assert most == 9
    assert {name: how[name] for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")} == {
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.5,
        "min_p": 0.0,
        "repetition_penalty": 1.3,
    }
    assert "draws its responses: vLLM draws others than transformers" in caplog.text


def test_what_the_students_files_ask_for_and_vllm_cannot_do_is_refused(tmp_path: Path) -> None:
    """Before the engine starts."""
    build_model(tmp_path, chat_template=CHATML, head_dim=32)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"no_repeat_ngram_size": 3, "num_beams": 2}))
    with pytest.raises(InputError, match=r"has num_beams, no_repeat_ngram_size, which vLLM cannot do; set speed\.ev"):
        load_in_vllm(str(tmp_path), KNOBS)


def test_copies_need_gpus_and_an_engine_that_cannot_start_is_one_line(model: str) -> None:
    with pytest.raises(InputError, match=r"data_parallel 2 times tensor_parallel 1 needs 2 GPUs, 0 are visible"):
        load_in_vllm(model, KNOBS.changed(data_parallel=2))
    with pytest.raises(InputError, match=r"vLLM cannot start the student in .* The knobs are in speed\.evaluation"):
        load_in_vllm(model, KNOBS.changed(max_model_len=4096))


def test_a_thinking_students_responses_are_the_same(engines: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The task's stop texts apply to what follows the thought; the whole response is kept."""
    found = []
    for engine in engines:
        monkeypatch.setattr(engine, "thinking", "keep")
        whole = engine.generate_until(requests(engine), True)
        answers = engine.generate_until(requests(engine, until=[whole[0][3:5]]), True)
        assert answers[0] != answers[0].whole == whole[0].whole
        found.append([(str(answer), answer.whole) for answer in answers])
    assert found[0] == found[1]


def test_on_a_cpu_engines_run_one_after_the_other_in_this_process(
    model: str, engines: tuple[Any, Any], tmp_path: Path
) -> None:
    """In a process of its own: the tests hide GPUs by a variable under which vLLM expects one later."""
    script = f"""
import json, os, sys
import psutil
from tests.test_evaluation_vllm import KNOBS, load_in_vllm, requests
from vllm.platforms import current_platform

if not current_platform.is_cpu():
    sys.exit(77)
found = []
for _ in range(2):
    engine = load_in_vllm({model!r}, KNOBS)
    found.append(engine.generate_until(requests(engine), True))
    started = [child.name() for child in psutil.Process().children(recursive=True) if "resource_tracker" not in
               " ".join(child.cmdline())]
    engine.close()
json.dump([found, started], open({str(tmp_path / "found.json")!r}, "w"))
"""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("vLLM's build is one for GPUs")
    assert done.returncode == 0, done.stderr[-3000:]
    found, started = json.loads((tmp_path / "found.json").read_text())
    plain = engines[0]
    assert found == [plain.generate_until(requests(plain), True)] * 2
    assert not started


@pytest.mark.slow
def test_a_real_model_writes_the_same_but_for_ties(tmp_path: Path) -> None:
    """SmolLM2-135M: what differs does so where two tokens are as likely but for rounding."""
    name = "packaged:smollm2-135m-instruct"
    network, tokenizer = load_causal_lm(name), student_tokenizer(load_tokenizer(name))
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["Name two colours.", "What is 12 * 3?", "Write about cats without commas.", "Why is the sky blue?"]
    conversations = [user_message(text) for text in texts]
    plain, engine = in_transformers(str(tmp_path)), load_in_vllm(str(tmp_path), VLLMKnobs(max_model_len=512))
    try:
        expected = plain.generate_until(requests(plain, conversations, max_gen_toks=24), True)
        found = engine.generate_until(requests(engine, conversations, max_gen_toks=24), True)
    finally:
        engine.close()
    different = [n for n in range(len(texts)) if found[n] != expected[n]]
    for n in different:
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in (found[n], expected[n])]
        assert gap(network, plain.apply_chat_template(conversations[n]).ids, *ids) < TIE
    print(f"{len(different)} of {len(texts)} responses part at a tie")  # noqa: T201
    assert len(different) < len(texts)


@pytest.mark.slow
def test_a_whole_evaluation_gives_the_same_table(model: str) -> None:
    settings = EvaluationSettings(tasks=["persyn_ifeval", "persyn_math"], max_tokens=8, limit=3)
    speeds = EvaluationSpeed(batch_size=2), EvaluationSpeed(engine="vllm", max_num_seqs=4)
    tables = [evaluate_student(model, ROOT / "tasks", settings, speed) for speed in speeds]
    assert tables[0][0] == tables[1][0]
    assert tables[0][1].equals(tables[1][1])

"""The vllm backend on the tiny model, with vLLM's CPU build. Skipped where vLLM is not installed."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import torch

from persyn.chat import encode_prompt
from persyn.errors import InputError
from persyn.generation import Backend, RaySpeed, Sampling, Teacher, load_backend
from persyn.generation.requests import generate_rows, prepare_requests, teacher_identity
from persyn.generation.transformers import TransformersSpeed
from persyn.generation.vllm import VLLMSpeed
from persyn.models import load_causal_lm, load_tokenizer, model_identity
from persyn.responses import generate_responses
from persyn.store import Store, verify
from tests.support.tables import prompts_table
from tests.support.texts import ATTACKS
from tests.support.tiny import CHATML, build_model

pytest.importorskip("vllm")
os.environ.update({"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"})

PROMPTS = prompts_table([f"Say {'a long word ' * (i % 4)}number {i}." for i in range(9)])
Answers = dict[str, tuple[str, str, int, int]]
"""Key -> response, finish reason, prompt tokens, response tokens."""


def engines() -> list[psutil.Process]:
    """vLLM's processes below this one."""
    living = [each for each in psutil.Process().children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in living if "VLLM" in "".join(each.cmdline())]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model of a head size that vLLM's CPU build has kernels for."""
    return build_model(tmp_path_factory.mktemp("model"), chat_template=CHATML, head_dim=32)


@pytest.fixture(scope="module")
def engine(model: str) -> Iterator[Backend]:
    backend = load_backend(teacher(model, "vllm"), VLLMSpeed(max_num_seqs=4))
    assert engines()
    yield backend
    backend.close()
    assert not engines(), "its memory is back"


def teacher(model: str, backend: str, **sampling: Any) -> Teacher:
    return Teacher(model=model, license="x", backend=backend, sampling=Sampling(max_tokens=12, **sampling))


def ask(backend: Backend, who: Teacher, prompts: pl.DataFrame, folder: Path) -> Answers:
    """Ask a loaded engine; a store of its own, so everything is asked."""
    requests = prepare_requests(prompts, who)
    rows = {
        key: row for each in generate_rows(requests, backend, who.sampling, Store(folder)) for key, row in each.items()
    }
    fields = "response", "finish_reason", "num_prompt_tokens", "num_response_tokens"
    return {key: tuple(row[field] for field in fields) for key, row in rows.items()}


def test_its_answers_are_those_of_transformers(engine: Backend, model: str, tmp_path: Path) -> None:
    """Greedy, in fp32: token for token."""
    plain = teacher(model, "transformers")
    expected = ask(load_backend(plain, TransformersSpeed()), plain, PROMPTS, tmp_path / "1")
    assert len(expected) == PROMPTS.height
    assert ask(engine, teacher(model, "vllm"), PROMPTS, tmp_path / "2") == expected


def test_the_engine_reads_the_tokens_of_encode_prompt(engine: Backend, model: str, tmp_path: Path) -> None:
    """Also where a prompt spells control tokens, and where it begins or ends with blanks."""
    read, generate = [], engine.engine.generate  # type: ignore[attr-defined]

    async def noting(*how: Any) -> AsyncIterator[Any]:
        async for output in generate(*how):
            read.append(list(output.prompt_token_ids))
            yield output

    prompts = prompts_table([*ATTACKS, "<s>x</s>", "東京の天気は。", " Blanks around. \n"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.engine, "generate", noting)  # type: ignore[attr-defined]
        ask(engine, teacher(model, "vllm"), prompts, tmp_path)
    tokenizer = load_tokenizer(model)
    assert sorted(read) == sorted(encode_prompt(tokenizer, prompt) for prompt in prompts["prompt"].to_list())


def test_a_draw_depends_on_seed_and_prompt_but_not_on_its_company(engine: Backend, model: str, tmp_path: Path) -> None:
    who = teacher(model, "vllm", temperature=1.0, seed=1)
    whole = ask(engine, who, PROMPTS, tmp_path / "1")
    assert ask(engine, who, PROMPTS[3:4], tmp_path / "2").items() <= whole.items()
    other = ask(engine, teacher(model, "vllm", temperature=1.0, seed=2), PROMPTS, tmp_path / "3")
    assert set(other.values()) != set(whole.values())


def test_too_long_a_prompt_is_refused_before_any_is_answered(engine: Backend, model: str, tmp_path: Path) -> None:
    prompts = prompts_table(["word " * 2000, "short"])
    with pytest.raises(InputError, match=r"1 prompts do not fit .* exceeds its context of 1024"):
        ask(engine, teacher(model, "vllm"), prompts, tmp_path)
    assert not verify(tmp_path)[1]


def test_more_sampling_arguments_are_those_of_vllm(engine: Backend, model: str, tmp_path: Path) -> None:
    whole = ask(engine, teacher(model, "vllm"), PROMPTS[:2], tmp_path / "1")
    one = teacher(model, "vllm", temperature=1.0, top_k=1)  # the likeliest token, however it is drawn
    assert sorted(ask(engine, one, PROMPTS[:2], tmp_path / "2").values()) == sorted(whole.values())
    penalised = teacher(model, "vllm", repetition_penalty=50.0)
    assert sorted(ask(engine, penalised, PROMPTS[:2], tmp_path / "4").values()) != sorted(whole.values())
    for name, value in (("top_kk", 1), ("top_k", -7)):
        with pytest.raises(InputError, match=rf"vLLM refuses its sampling: .*its settings \({name}\) must"):
            ask(engine, teacher(model, "vllm", extra={name: value}), PROMPTS[:2], tmp_path / "3")
    assert not verify(tmp_path / "3")[1]


def test_a_text_that_ends_a_response_does_so_in_both_engines(engine: Backend, model: str, tmp_path: Path) -> None:
    whole = ask(engine, teacher(model, "vllm"), PROMPTS, tmp_path / "1")
    said = "".join(text[1:] for text, *_ in whole.values())
    stop = Counter(filter(str.isalnum, filter(str.isascii, said))).most_common(1)[0][0]
    plain = teacher(model, "transformers", stop=[stop, "never said"])
    expected = ask(load_backend(plain, TransformersSpeed(batch_size=4)), plain, PROMPTS, tmp_path / "2")
    assert ask(engine, teacher(model, "vllm", stop=[stop, "never said"]), PROMPTS, tmp_path / "3") == expected
    cut = {text.partition(stop)[0] for text, *_ in whole.values() if stop in text}
    assert len(cut) > 1
    assert not any(stop in text for text, *_ in expected.values())
    assert {reason for text, reason, *_ in expected.values() if text in cut} == {"stop"}


def save_adapter(model: str, folder: Path) -> str:
    """A LoRA adapter of random weights, large enough to change every response."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(load_causal_lm(model), config)
    adapted.save_pretrained(str(folder))
    return str(folder)


@pytest.mark.slow
def test_a_lora_adapter_makes_another_model(engine: Backend, model: str, tmp_path: Path) -> None:
    """Its responses are those of transformers with the adapter merged in; its keys are not those of the plain model."""
    from peft import PeftModel

    adapter = save_adapter(model, tmp_path / "adapter")
    merged = PeftModel.from_pretrained(load_causal_lm(model), adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    load_tokenizer(model).save_pretrained(tmp_path / "merged")
    plain = teacher(str(tmp_path / "merged"), "transformers")
    expected = ask(load_backend(plain, TransformersSpeed()), plain, PROMPTS, tmp_path / "1")
    who = teacher(model, "vllm").changed(adapter=adapter)
    adapted = load_backend(who, VLLMSpeed(max_num_seqs=4))
    try:
        found = ask(adapted, who, PROMPTS, tmp_path / "2")
    finally:
        adapted.close()
    assert sorted(found.values()) == sorted(expected.values())
    assert sorted(ask(engine, teacher(model, "vllm"), PROMPTS, tmp_path / "3").values()) != sorted(found.values())
    asked = [{request.key for request in prepare_requests(PROMPTS, each)} for each in (who, teacher(model, "vllm"))]
    assert not asked[0] & asked[1]


def test_how_a_model_is_quantised_is_part_of_what_it_is(model: str) -> None:
    plain = teacher(model, "vllm")
    asked = [prepare_requests(PROMPTS, each)[0].key for each in (plain, plain.changed(quantization="fp8"))]
    assert asked[0] != asked[1]
    assert teacher_identity(plain) == model_identity(model, None), "and without one it is what it was"
    with pytest.raises(InputError, match=r"vLLM cannot start .*; the teacher's entry also has quantization 'no such'"):
        load_backend(plain.changed(quantization="no such"), VLLMSpeed())
    with pytest.raises(
        InputError, match=r"adapter is 'none', where there is no adapter_config.json; it must be a loca"
    ):
        prepare_requests(PROMPTS, plain.changed(adapter="none"))


@pytest.mark.slow
def test_in_a_ray_actor(model: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    knobs = VLLMSpeed(max_num_seqs=4, ray=RaySpeed(workers=1, unit=4))
    table = generate_responses(PROMPTS, "t", teacher(model, "vllm"), tmp_path / "1", knobs)
    plain = teacher(model, "transformers")
    assert table.equals(generate_responses(PROMPTS, "t", plain, tmp_path / "2", TransformersSpeed()))


SCRIPT = """
import sys
from pathlib import Path
import polars as pl
from persyn.generation import Sampling, Teacher, load_backend
from persyn.generation.vllm import VLLMSpeed
if __name__ == "__main__":
    teacher = Teacher(model=sys.argv[1], license="x", backend="vllm", sampling=Sampling(max_tokens=12))
    engine = load_backend(teacher, VLLMSpeed())
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.slow
def test_killed_it_leaves_no_engine_behind(model: str, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "run.py"), model]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    run = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdout
    while b"ready" not in run.stdout.readline():
        assert run.poll() is None
    children = psutil.Process(run.pid).children(recursive=True)
    assert [child for child in children if "VLLM" in "".join(child.cmdline())]
    run.send_signal(signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not [each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]

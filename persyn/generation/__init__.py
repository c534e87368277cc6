"""Generation: a teacher, how it is asked, and the Backend protocol that every engine speaks."""

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import AfterValidator, Field, model_validator

from persyn.errors import InputError, did_you_mean
from persyn.messages import Message, as_messages, assistant_message, user_message
from persyn.models.shares import Nodes
from persyn.prompts.sources import Rows
from persyn.settings import DATE, Commit, Day, Misfit, Seed, Settings, shown

Training = Literal["allowed", "conditional", "forbidden", "unknown"]


def _without(reserved: Mapping[str, str]) -> AfterValidator:
    """Refuse a mapping with keys that are set elsewhere (key -> what to do), or with values that json lacks: the keys
    of the response store could not tell them apart.
    """

    def check(given: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(given, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(f"is {shown(given)}; its values must be text, numbers, true, false or null") from None
        for name in given:
            if name in reserved:
                raise ValueError(f"holds {name}, which cannot be set here; {reserved[name]}")
        return given

    return AfterValidator(check)


REMOVE = "remove it"
NAMED = ("top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "stop")
"""Settings of `sampling` that an engine gets under the same name, if they are given."""
DRAWN = ("temperature", "top_p", "seed")
OF_THE_REQUEST = dict.fromkeys(("messages", "model", "n", "stream", "output_kind", "logprobs", "tools"), REMOVE)
EXTRA = _without(
    {name: f"it must be sampling.{name}" for name in ("max_tokens", *DRAWN, "stop")}
    | {"chat_template_kwargs": "it must be the teacher's `template`"}
    | OF_THE_REQUEST
)
EXTRA_BODY = _without(
    {name: f"it must be sampling.{name}" for name in ("max_tokens", *DRAWN, *NAMED)}
    | dict.fromkeys(("max_completion_tokens", "max_output_tokens"), "it must be sampling.max_tokens")
    | {"chat_template_kwargs": "the teacher's `template` holds these arguments: put them there"}
    | OF_THE_REQUEST
)
Positive = Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0)]
Penalty = Annotated[int, Field(ge=-2, le=2)] | Annotated[float, Field(ge=-2, le=2)]
TEMPLATE = _without(
    dict.fromkeys(("messages", "conversation", "add_generation_prompt", "tokenize", "return_dict"), REMOVE)
    | dict.fromkeys(("chat_template", "return_tensors", "continue_final_message", "padding", "truncation"), REMOVE)
)


class Sampling(Settings):
    """How a teacher's tokens are drawn. A whole number stays one: the keys of the response store tell 1 from 1.0."""

    max_tokens: Annotated[int, Field(ge=1)]
    """Response tokens at most; a longer response is cut and marked `length`."""
    temperature: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0)] | None = 0.0
    """0 is greedy. null (backend openai only): not sent, for a model that takes only its own."""
    top_p: Annotated[int, Field(gt=0, le=1)] | Annotated[float, Field(gt=0, le=1)] | None = 1.0
    """Nucleus sampling: draws from the likeliest tokens that together have this probability. Of no effect where
    temperature is 0, as the seed. null (backend openai only): not sent."""
    seed: Seed | None = 0
    """Seed of the draws, where temperature is above 0. null (backend openai only): not sent, for a server that takes
    none."""
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """Draws from this many of the likeliest tokens; 0 and -1: from all. null: not sent, as for those below."""
    min_p: Annotated[int, Field(ge=0, le=1)] | Annotated[float, Field(ge=0, le=1)] | None = None
    """Draws from the tokens that are at least this share as likely as the likeliest."""
    frequency_penalty: Penalty | None = None
    """Subtracted from a token's logit as often as the response has it. Not for transformers."""
    presence_penalty: Penalty | None = None
    """Subtracted from a token's logit once the response has it. Not for transformers."""
    repetition_penalty: Positive | None = None
    """Divides the logit of tokens that the prompt or the response has; 1 is none. Not for transformers."""
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    """Texts that end a response, which is cut before the first of them."""
    extra: Annotated[dict[str, Any], EXTRA] = Field(default_factory=dict, json_schema_extra={"deprecated": True})
    """The earlier way to write `top_k`, `min_p`, the penalties and the teacher's `extra_body`. It is still read."""

    @model_validator(mode="after")
    def _given_once(self) -> Self:
        for name in NAMED:
            if name in self.extra and getattr(self, name) is not None:
                raise Misfit("extra", f"holds {name}, which is given beside it too; remove it from extra")
        return self

    @property
    def drawn(self) -> dict[str, Any]:
        """The settings that decide the tokens, without max_tokens, which only cuts them; without what is not sent."""
        if self.temperature == 0:
            return {"temperature": 0}
        return {name: value for name in DRAWN if (value := getattr(self, name)) is not None}

    @property
    def more(self) -> dict[str, Any]:
        """The further arguments of the engine, by their names. One that was written in `extra` has the same place in
        the keys of the response store as one with a field of its own.
        """
        return {**self.extra, **{name: value for name in NAMED if (value := getattr(self, name)) is not None}}

    def drawn_for(self, key: str) -> dict[str, Any]:
        """`drawn` for an engine that takes a seed per request: 31 bits of the request's key, whatever its batch."""
        if "seed" not in self.drawn:
            return self.drawn
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}:{key}".encode()).digest()[:4]) >> 1
        return {**self.drawn, "seed": seed}


class Example(Settings):
    """A worked example."""

    prompt: str
    """The prompt."""
    response: str
    """The response."""


class Precomputed(Rows):
    """Responses that a teacher has already given. `path` is relative to the working folder."""

    prompt: str = "prompt"
    """Column or template of the prompt, which may be a conversation as in `prompts.sources`. It must equal the prompt,
    except for blanks at the ends of lines."""
    response: str = "response"
    """Column or template of the response."""
    score: str | None = None
    """Column (of numbers or their text) or template of the response's score, higher for better, for the quality method
    `given`."""
    tokenizer: Annotated[str, Field(min_length=1)] | None = None
    """Whose tokens count prompts and responses, where the teacher's own tokenizer is not here: `packaged:<name>` or a
    local folder. The counts are then estimates. null: the teacher's own."""
    keep_empty: bool = False
    """Whether an empty response is one: the teacher said nothing. Otherwise its row is skipped."""
    reasoning: str | None = None
    """Column or template of the response's thought, where it is apart. null: the thought is what the response begins
    with, if it begins with a think-block."""


def _known_backend(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"is {name!r}; it must be one of {', '.join(BACKENDS)}{did_you_mean(name, BACKENDS)}")
    return name


class Teacher(Settings):
    """A teacher: a model, everything that shapes its responses, and their terms."""

    renamed: ClassVar[Mapping[str, str]] = {"answers": "precomputed"}

    model: Annotated[str, Field(min_length=1)]
    """`packaged:<name>`, a local folder, a hub id, or what a server calls its model."""
    sampling: Sampling
    """How its tokens are drawn."""
    license: str
    """Licence of the model, copied to every row of the dataset."""
    backend: Annotated[
        str, AfterValidator(_known_backend), Field(json_schema_extra=lambda schema: schema.update(enum=[*BACKENDS]))
    ]
    """The engine that runs it; openai means any server with that API."""
    training: Training = "unknown"
    """Whether its outputs may train other models."""
    terms: str | None = None
    """The condition on that and where it is written, in one line."""
    revision: Commit | None = None
    """40-hex commit of a hub id."""
    system: str | None = None
    """System prompt. A prompt's own system message follows it, after a blank line, in the same message."""
    examples: list[Example] = Field(default_factory=list)
    """Worked examples shown before each prompt, which tell a base model what to do."""
    template: Annotated[dict[str, Any], TEMPLATE] = Field(default_factory=dict)
    """Arguments of its chat template, such as `enable_thinking: false` or `reasoning_effort: low`. A server gets them
    as `chat_template_kwargs`."""
    date: Day = DATE
    """ISO date that its chat template writes where it writes today's, so that a prompt is the same every day. Of no
    effect behind a server, which renders its own."""
    extra_body: Annotated[dict[str, Any], EXTRA_BODY] = Field(default_factory=dict)
    """More arguments of the engine, by its own names. openai: fields of the request's body, such as `reasoning_effort`,
    `response_format`, a thinking budget or a provider's own objects. vllm: fields of its SamplingParams. transformers
    takes none."""
    host: Annotated[str, Field(min_length=1)] | None = None
    """A name for where the model is served, if the same name at another server is to be another model: its responses
    are then stored and asked for apart. For the backend openai."""
    quantization: Annotated[str, Field(min_length=1)] | None = None
    """vLLM's name of a method (such as `fp8` or `bitsandbytes`) by which it quantises the weights as it loads them. A
    model whose files are quantised needs none. For the backend vllm."""
    adapter: Annotated[str, Field(min_length=1)] | None = None
    """Local folder of a LoRA adapter, as PEFT saves it (`adapter_config.json`, `adapter_model.safetensors`), that the
    model is run with. For the backend vllm."""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""
    family: str | None = None
    """Family of models, for the strategy family_strong."""
    anchors: Annotated[int, Field(ge=1)] | None = None
    """How many parallel prompts it responds to: they place it beside the trained router. null: all of them."""
    is_student: bool = False
    """Whether it is the student itself, before any tuning: it responds to the parallel set, so that `rewards.unsolved`
    knows what it cannot do. No prompt is routed to it and nothing of it is trained on, so its terms do not matter. Its
    model must be `student.model`; one teacher at most."""
    precomputed: Precomputed | None = None
    """A data set of responses that it has already given, used instead of asking it."""
    samples: Annotated[int, Field(ge=1)] = 1
    """How often it is asked each prompt. Of several samples, those without a defect that `defects` drops come first,
    then those of higher quality, then earlier ones; the first of this order is its response, on the parallel set and in
    the dataset. All are scored, and paid for. It needs a temperature above 0."""

    @model_validator(mode="after")
    def _samples_can_differ(self) -> Self:
        if self.samples > 1 and (self.sampling.temperature == 0 or self.precomputed):
            cause = "it has precomputed responses" if self.precomputed else "temperature 0 makes all samples alike"
            raise Misfit("samples", f"is {self.samples}, but {cause}; it must be 1")
        return self

    @model_validator(mode="after")
    def _is_student_untuned_and_whole(self) -> Self:
        if self.is_student:
            for field, why in (
                ("anchors", "responds to all parallel prompts"),
                ("adapter", "is asked before any tuning"),
            ):
                if (value := getattr(self, field)) is not None:
                    raise Misfit(field, f"is {shown(value)}, but is_student is true, and the student {why}; {REMOVE}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _template_of_body(cls, data: Any) -> Any:
        """Read `extra_body.chat_template_kwargs`, as servers call it, as `template`; both at once are refused."""
        body = data.get("extra_body") if isinstance(data, Mapping) else None
        if not isinstance(body, Mapping) or "chat_template_kwargs" not in body or data.get("template"):
            return data
        rest = {name: value for name, value in body.items() if name != "chat_template_kwargs"}
        return {**data, "template": body["chat_template_kwargs"], "extra_body": rest}

    @model_validator(mode="after")
    def _given_once(self) -> Self:
        for name in self.extra_body:
            if name in self.sampling.extra:
                raise Misfit("extra_body", f"holds {name}, which sampling.extra holds too; remove it from extra")
        return self

    def messages(self, prompt: str | Sequence[Message]) -> list[Message]:
        """The conversation that the teacher gets for `prompt`: one system message at most, the examples, the turns."""
        turns = as_messages(prompt)
        system = [self.system] if self.system else []
        while turns and turns[0]["role"] == "system":
            system.append(turns.pop(0)["content"])
        shown = [{"role": "system", "content": "\n\n".join(system)}] if system else []
        for example in self.examples:
            shown += user_message(example.prompt) + assistant_message(example.response)
        return shown + turns

    @property
    def shaped(self) -> dict[str, Any]:
        """What else decides its responses, beside its model, the messages and `sampling.drawn`; without what is at its
        default, so that responses stored before there was such a field are found.
        """
        given = {
            "template": self.template,
            "date": self.date if self.date != DATE else "",
            "extra": {**self.sampling.more, **self.extra_body},
        }
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True)
class Generation:
    """One response, or why there is none."""

    response: str
    finish_reason: str
    """stop: ended by itself; length: cut at max_tokens, or inside its thought; error: no response."""
    num_prompt_tokens: int = 0
    num_response_tokens: int = 0
    error: str = ""
    """`<kind>: <reason>`, where finish_reason is error."""
    reasoning: str | None = None
    """The thought before the response. If the response ended inside it, `response` is empty and finish_reason length.
    """
    final: bool = False
    """With an error: asking again at this max_tokens cannot change it, so nobody does. The teacher is not to blame."""
    estimated: bool = False
    """A count of tokens is an estimate: the server gave none."""
    said: str = ""
    """The server's own finish reason, if nobody knows it."""
    lost_prompt_tokens: int = 0
    """Prompt tokens of earlier attempts that were paid for and brought no response."""
    lost_response_tokens: int = 0
    """Response tokens of the same."""


class RaySpeed(Nodes):
    """Ray actors that run a teacher's backend, on one machine or a cluster."""

    unit: Annotated[int, Field(ge=1)] = 32
    """Requests that an actor takes at a time."""


class BackendSpeed(Settings):
    """Knobs of a backend that change how fast, never what, it generates."""

    ray: RaySpeed | None = None
    """Ray actors that run the backend; null runs it in this process."""


class Backend(Protocol):
    """An engine that generates responses to conversations. Its module may be imported without its package."""

    Speed: ClassVar[type[BackendSpeed]]
    """The model of its section of `speed`."""

    def __init__(self, teacher: Teacher, speed: Any) -> None:
        """`speed` is an instance of Speed."""

    def generate(
        self, conversations: Sequence[Sequence[Message]], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[dict[int, Generation]]:
        """Yield every conversation's Generation once, by position, in batches as they finish.

        `keys` identify the conversations: the draws for one must depend on its key and the seed, not on its batch.
        A conversation that still fails after a sensible number of attempts is yielded as an error.

        Raises:
            InputError: before any generation, if a conversation does not fit the model's context.
        """

    def close(self) -> None:
        """Release memory, processes and connections. The backend cannot generate afterwards."""


BACKENDS = {
    "transformers": "persyn.generation.transformers:TransformersBackend",
    "vllm": "persyn.generation.vllm:VLLMBackend",
    "openai": "persyn.generation.openai:OpenAIBackend",
}


def backend_class(name: str) -> type[Backend]:
    """The class of a backend. Imports its module, but not the packages that it needs."""
    module, _, attribute = BACKENDS[name].partition(":")
    found: type[Backend] = getattr(importlib.import_module(module), attribute)
    return found


def load_backend(teacher: Teacher, speed: BackendSpeed) -> Backend:
    """The teacher's engine, with these speed knobs. Call it only when there is something to generate.

    Raises:
        InputError: it does not honour all settings of the teacher, is not installed, or cannot start.
    """
    check_taken(teacher)
    try:
        return backend_class(teacher.backend)(teacher, speed)
    except ModuleNotFoundError as error:
        raise InputError(
            f"backend {teacher.backend} needs {error.name}, which is not installed; run "
            f"`pip install 'persyn[{teacher.backend}]'` (on a machine without a GPU: persyn[{teacher.backend}-cpu])"
        ) from error


def untaken(teacher: Teacher) -> list[tuple[tuple[str, ...], str]]:
    """The settings of a teacher that its backend does not honour: where each is, and what is wrong, in words.

    A backend's class says in `takes` which it honours of: those in NAMED, `null` (for temperature, top_p and seed),
    `extra_body`, `host`, `quantization` and `adapter`. What is in `sampling.extra` counts as the one of its name, or as
    `extra_body`.
    """
    sampling = teacher.sampling
    given: list[tuple[tuple[str, ...], str, Any]] = [
        (("sampling", name), "null", None) for name in DRAWN if getattr(sampling, name) is None
    ]
    given += [(("sampling", name), name, value) for name in NAMED if (value := getattr(sampling, name)) is not None]
    given += [
        (("sampling", "extra", name), name if name in NAMED else "extra_body", value)
        for name, value in sampling.extra.items()
    ]
    given += [(("extra_body", name), "extra_body", value) for name, value in teacher.extra_body.items()]
    for name in ("host", "quantization", "adapter"):
        given += [((name,), name, value)] if (value := getattr(teacher, name)) is not None else []
    taken: frozenset[str] = getattr(backend_class(teacher.backend), "takes", frozenset())
    return [(place, _untaken(teacher.backend, kind, value)) for place, kind, value in given if kind not in taken]


def _untaken(backend: str, kind: str, value: Any) -> str:
    others = [name for name in BACKENDS if kind in getattr(backend_class(name), "takes", ())]
    cure = "give a number" if kind == "null" else REMOVE
    return (
        f"is {shown(value)}, which the backend {backend} does not honour; {cure}, or choose another backend "
        f"({' or '.join(others) or 'none does'})"
    )


def check_taken(teacher: Teacher) -> None:
    """Raise InputError, with a line for each, if the teacher's backend does not honour all its settings."""
    if wrong := untaken(teacher):
        raise InputError(*(f"{teacher.model}: {'.'.join(place)} {text}" for place, text in wrong))


def pool_of(teachers: Mapping[str, Teacher]) -> dict[str, Teacher]:
    """The teachers that prompts may be routed to: all but the one that is the student itself."""
    return {name: teacher for name, teacher in teachers.items() if not teacher.is_student}


def anchored_teachers(teachers: Mapping[str, Teacher]) -> list[str]:
    """Names of the teachers with `anchors`: they respond to a few parallel prompts and join the trained router."""
    return [name for name, teacher in teachers.items() if teacher.anchors is not None]


def check_context(prompts: Sequence[Sequence[int]], max_tokens: int, context: int | None, model: str) -> None:
    """Raise InputError if the longest prompt plus `max_tokens` exceeds the model's context, in tokens."""
    too_long = [len(prompt) for prompt in prompts if context and len(prompt) + max_tokens > context]
    if too_long:
        raise InputError(
            f"{len(too_long)} prompts do not fit {model}: the longest has {max(too_long)} tokens, which with "
            f"max_tokens {max_tokens} exceeds its context of {context}; lower max_tokens or set prompts.max_characters"
        )

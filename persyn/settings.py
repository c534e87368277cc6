"""Settings: the checks of a section of params.yaml: strict types, bounds, and one line for every mistake.

A section is a subclass of Settings, kept beside the code that uses it. The text under a field is its documentation:
the reference of all parameters and `params.schema.json` are generated from it.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from persyn.errors import InputError, did_you_mean, nearest

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", json_schema_extra={"x-needed": "a commit of 40 hex digits"})]
"""The 40-hex commit of a hub id."""


def _day(value: str) -> str:
    try:
        right = date.fromisoformat(value).isoformat() == value
    except ValueError:
        right = False
    if not right:
        raise ValueError(f"is {value!r}; it must be an ISO date, such as 2025-01-01")
    return value


Day = Annotated[
    str,
    BeforeValidator(lambda value: value.isoformat() if isinstance(value, date) else value),  # YAML reads it as a date
    AfterValidator(_day),
]
"""An ISO date."""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
RESERVED = {"con", "prn", "aux", "nul"}


def _file_name(name: str) -> str:
    if name in RESERVED:
        raise ValueError("cannot name a file: Windows keeps that name for itself; choose another")
    if not NAME.fullmatch(name):
        raise ValueError("cannot name a file; use up to 64 of a-z, 0-9, '-' and '_', a letter or digit first")
    return name


Name = Annotated[str, AfterValidator(_file_name)]
"""A name that becomes the name of a file."""
UNTUNED = "untuned"
"""The name of the student before any tuning, among those that are compared. No strategy may have it."""
DATE = "2025-01-01"
"""What chat templates write as today's date, unless told otherwise: a prompt must read the same tomorrow."""
VLLM_PARENT = "PERSYN_VLLM_PARENT"
"""Environment variable: the id of the process whose children, if they are vLLM's, end with it."""
Thinking = Literal["none", "keep"]
"""Whether a thought is part of what the student learns."""
KEY = "[key]"
"""How pydantic marks, in the place of a mistake, that it is about the key of a mapping."""
TYPES = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
TYPES |= {"object": "a mapping (keys and their values)", "array": "a list", "null": "null"}


class Misfit(ValueError):
    """A field contradicts another one: raised by a model's validator to say which field must change."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


class Settings(BaseModel):
    """A mapping of params.yaml with known keys. It is immutable."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, defer_build=True
    )

    renamed: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions -> what they are called now."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that came later. One with its default is not dumped, so that hashes of dumps stay what they were."""

    @model_validator(mode="wrap")
    @classmethod
    def _in_plain_words(cls, data: Any, handler: Any) -> Self:
        """Replace pydantic's messages by ours, which say what was got and what is needed."""
        try:
            return handler(data)
        except ValidationError as error:
            mistakes = _deepest(error.errors(include_url=False), data)
            details = [cls._detail(found, data) for found in mistakes]
            raise ValidationError.from_exception_data(cls.__name__, details) from None

    @model_serializer(mode="wrap")
    def _without_later(self, handler: Any) -> dict[str, Any]:
        fields = type(self).model_fields
        unused = {name for name in self.later if getattr(self, name) == fields[name].default}
        return {name: value for name, value in handler(self).items() if name not in unused}

    @classmethod
    def _detail(cls, found: Any, data: Any) -> InitErrorDetails:
        place, got, kind = _place(found, data), found["input"], "plain"
        if found["type"] in ("plain", "missing key"):
            text, kind = found["msg"], found["type"]
        elif found["type"].startswith("union_tag"):
            field = found["ctx"]["discriminator"].strip("'")
            tags = next(_tags(_schema(cls), field))
            tag = got.get(field) if isinstance(got, Mapping) else None
            got_it = f"is {shown(tag)}" if isinstance(got, Mapping) and field in got else "is missing"
            place, text = (*place, field), f"{got_it}; it must be one of {', '.join(tags)}{did_you_mean(tag, tags)}"
        elif found["type"] == "extra_forbidden":
            now = cls.renamed.get(str(place[-1]))
            text = "is not a parameter" + (f"; it is called {now} now" if now else nearest(place[-1], cls.model_fields))
        elif found["type"] == "missing":
            text, kind = f"is missing; it must be {needed(cls, place[0])}", "missing key"
        elif found["type"] == "value_error":
            text, field = _text(found), _misfit(found)
            place, kind = (*place, *field), "missing key" if field else kind  # which it may be
        elif found["type"] == "invalid_key" or (found["type"] == "string_type" and found["loc"][-1] == KEY):
            text = f"is a key that must be text; write '{got}' in quotes"
        elif found["loc"][-1:] == (KEY,):
            text = f"is no name that is known here; {found['msg'].replace('Input should', 'it must')}"
        elif len(place) == 1 and place[0] in cls.model_fields:
            text = f"is {shown(got)}; it must be {needed(cls, place[0])}"
            if isinstance(got, str):
                text += did_you_mean(got, _choices(_schema(cls)["properties"].get(place[0], {})))
        elif found["type"] in ("model_type", "dict_type", "model_attributes_type"):
            text = f"is {shown(got)}; it must be {TYPES['object']}"
        else:
            text = f"is {shown(got)}; {found['msg'].replace('Input should be', 'it must be')}"
        return {"type": PydanticCustomError(kind, text), "loc": place, "input": got}

    @classmethod
    def parse(cls, data: Any, place: str = "") -> Self:
        """Check `data`, the content of `place` in params.yaml; null means no keys.

        Raises:
            InputError: with a line for every mistake.
        """
        try:
            return cls.model_validate(dict(data or {}) if isinstance(data, Mapping | None) else data)
        except ValidationError as error:
            raise InputError(*problems(error, place)) from None

    def changed(self, **changes: Any) -> Self:
        """A copy with other values; they are checked."""
        return type(self).model_validate({**dict(self), **changes})


def problems(error: ValidationError, place: str = "") -> list[str]:
    """A line for every mistake that pydantic found in a section: where, what was got and what is needed."""
    found = [((place, *one["loc"], *_misfit(one)), _text(one)) for one in error.errors()]
    return list(dict.fromkeys(f"{'.'.join(map(str, parts)).strip('.')} {text}".strip() for parts, text in found))


def _text(found: Any) -> str:
    """The message of a mistake. Checks of mode `after` run outside of _in_plain_words, so they are handled here."""
    return str(found["ctx"]["error"]) if found["type"] == "value_error" else str(found["msg"])


def _misfit(found: Any) -> tuple[str, ...]:
    """The field that such a check names, if any."""
    error = found.get("ctx", {}).get("error")
    return (error.field,) if isinstance(error, Misfit) else ()


def needed(section: type[BaseModel], field: str) -> str:
    """The values that a field takes, in words, such as `a number from 0 to 1`; from its schema."""
    schema = _schema(section)
    return describe(schema["properties"].get(field, {}), schema.get("$defs", {}))


@cache
def _schema(section: type[BaseModel]) -> dict[str, Any]:
    return section.model_json_schema()


def describe(schema: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """A JSON schema in words.

    Args:
        named: the schemas that `$ref` refers to.
    """
    if "$ref" in schema:
        schema = named[schema["$ref"].rpartition("/")[2]]
    if "x-needed" in schema:
        return str(schema["x-needed"])
    if "anyOf" in schema or "oneOf" in schema:
        either = schema.get("anyOf") or schema["oneOf"]
        kinds = {part.get("type") for part in either}
        kept = [part for part in either if part.get("type") != "integer" or "number" not in kinds]
        return ", or ".join(dict.fromkeys(describe(part, named) for part in kept))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    kind = TYPES.get(schema.get("type", ""), "a value")
    if schema.get("type") == "array" and "items" in schema:
        kind += f" (of each: {describe(schema['items'], named)})"
    if isinstance(schema.get("additionalProperties"), Mapping):
        kind = f"a mapping by name (of each: {describe(schema['additionalProperties'], named)})"
    return kind + _bounds(schema)


def shown(value: Any, length: int = 60) -> str:
    """A value of params.yaml on one line, cut where it is long."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def _choices(schema: Mapping[str, Any]) -> list[str]:
    """The texts that a schema allows, if it allows only some."""
    own = [str(choice) for choice in schema.get("enum", ())]
    return own + [choice for part in schema.get("anyOf", ()) for choice in _choices(part)]


def _tags(schema: Any, field: str) -> Iterator[list[str]]:
    """The values that tell the members of a union in a JSON schema apart."""
    if isinstance(schema, Mapping):
        if schema.get("discriminator", {}).get("propertyName") == field:
            yield list(schema["discriminator"]["mapping"])
        for inner in schema.values():
            yield from _tags(inner, field)


def _bounds(schema: Mapping[str, Any]) -> str:
    if "pattern" in schema:
        return f" like {schema['pattern']}"
    low, high, end = (schema.get(key) for key in ("minimum", "maximum", "exclusiveMaximum"))
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    upper = f", at most {high:g}" if high is not None else f" and below {_exactly(end)}" if end is not None else ""
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']:g}{upper}"
    if low is not None:
        return f" of at least {low:g}{upper}" if upper else f", {low:g} or more"
    if schema.get("minLength") or schema.get("minItems"):
        return " that is not empty"
    return ""


def _exactly(number: float) -> str:
    return f"{number:.0f}" if number == number // 1 else f"{number:g}"


def _deepest(mistakes: Sequence[Any], data: Any) -> list[Any]:
    """Drop a mistake about a whole list (its alternative is no list) where another one names the wrong item."""
    said = ("plain", "missing key")
    own = [_place(found, data) for found in mistakes if found["type"] not in said]
    above = {place[:end] for place in own for end in range(1, len(place))}
    return [found for found in mistakes if found["type"] in said or _place(found, data) not in above]


def _place(found: Any, data: Any) -> tuple[Any, ...]:
    """Where in `data` a mistake is, without the names of a union's members, which pydantic inserts."""
    place: list[Any] = []
    node, parts = data, found["loc"]
    for number, part in enumerate(parts, start=1):
        here = node if isinstance(node, Mapping) else dict(enumerate(node)) if isinstance(node, list) else {}
        missing = number == len(parts) and found["type"] in ("missing", "missing key")
        # A union is told apart by `rule`, and its member has that name: a key of the same name is the last part.
        member = number < len(parts) and here.get("rule") == part
        if part != KEY and not member and (part in here or missing):
            place.append(part)
            node = here.get(part)
    return tuple(place)


class VLLMKnobs(Settings):
    """Knobs of vLLM's engine, wherever it runs."""

    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """GPUs that share one copy of the model."""
    data_parallel: Annotated[int, Field(ge=1)] = 1
    """Copies of the model. Faster than tensor_parallel if the model fits one GPU."""
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of each GPU's memory to use."""
    max_num_seqs: Annotated[int, Field(ge=1)] = 256
    """Responses that are generated at once."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompt and response at most, to save memory; null is the model's context."""
    compile: bool = False
    """Whether vLLM compiles the model first: it takes minutes and pays off from tens of thousands of responses."""

    def engine_arguments(self) -> dict[str, Any]:
        """The knobs under vLLM's own names. It also readies the environment of vLLM's processes, which end with this
        one; what the user has set there stays.
        """
        os.environ.update({VLLM_PARENT: str(os.getpid()), "VLLM_NO_USAGE_STATS": "1"})
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # another model may have used the GPU here
        return {
            "tensor_parallel_size": self.tensor_parallel,
            "data_parallel_size": self.data_parallel,
            "gpu_memory_utilization": self.gpu_memory,
            "max_num_seqs": self.max_num_seqs,
            "max_model_len": self.max_model_len,
            "enforce_eager": not self.compile,
        }

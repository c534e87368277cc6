"""Precomputed: responses that a teacher has already given, read from a data set instead of asked for.

They may have been made with another system prompt or sampling than the teacher's entry in params.yaml says: nothing
checks that. The store keeps them under keys of their own, with a hash of the field `precomputed` and of its file: when
either changes, the rows are read again.
"""

import functools
import hashlib
import json
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from persyn.chat import with_chat_template
from persyn.errors import InputError
from persyn.generation import Generation, Precomputed, Teacher
from persyn.generation.reading import encode_conversations
from persyn.messages import Message
from persyn.models import load_tokenizer
from persyn.prompts.conversations import prompt_id
from persyn.thinking import Thought, split_thought

logger = logging.getLogger(__name__)
HERE = Path()
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def precomputed_suffix(teacher: Teacher) -> str:
    """The ending of the store's keys of precomputed responses, which generated ones lack: a hash of the field
    `precomputed` and of the file it names; empty where the teacher has none.

    Raises:
        InputError: the file is missing, or a hub dataset is not pinned.
    """
    source = teacher.precomputed
    if source is None:
        return ""
    # The score decides no response, and stores that were filled before there was one are read as before.
    # The others count only where they are set, for the same reason.
    later = {"tokenizer", "keep_empty", "reasoning"}
    given = source.model_dump(exclude={"score", *later}) | source.model_dump(include=later, exclude_defaults=True)
    fields = json.dumps([given, source.origin(HERE)], sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()[:16]


class PrecomputedRows:
    """The teacher's precomputed responses, as rows of the store with their `origin`.

    A prompt gets its first row that fits. A row that matches no prompt, is empty (unless `keep_empty`), or has more
    than max_tokens, its thought included, is skipped and counted in the log. One with nothing but a thought is empty.
    """

    def __init__(self, name: str, teacher: Teacher, source: Precomputed) -> None:
        """
        Args:
            name: the teacher's key in params.yaml.
            source: its `precomputed`.
        """
        self.name, self.teacher, self.source = name, teacher, source

    @functools.cached_property
    def tokenizer(self) -> Any:
        return _tokenizer(self.name, self.teacher, self.source)

    def prompt_tokens(self, conversation: list[Message]) -> int:
        """Tokens of what the teacher was asked."""
        [shown] = encode_conversations(self.tokenizer, [conversation], self.teacher)
        return len(shown)

    def read(self, wanted: Set[str], batch: int = 50_000) -> Iterator[dict[str, dict[str, Any]]]:
        """prompt_id -> row, without the tokens of the prompt, in batches.

        Args:
            wanted: prompt_id of the prompts that have no response yet.
            batch: so many rows are in memory.

        Raises:
            InputError: the rows cannot be read, or the teacher has no tokenizer to count their tokens.
        """
        source, count, found = self.source, Counter[str](), set[str]()
        origin, max_tokens, rows = source.origin(HERE), self.teacher.sampling.max_tokens, dict[str, dict[str, Any]]()
        fields = {"prompt": source.prompt, "response": source.response}
        if source.reasoning is not None:
            fields["reasoning"] = source.reasoning
        for _, row in source.read(HERE, asked=["prompt"], **fields):
            identity, thought = _identity(row), _thought(row)
            if identity not in wanted or (identity in found and (thought.answer or source.keep_empty)):
                count["unmatched"] += 1
                continue
            if not thought.answer and not source.keep_empty:
                count["empty"] += 1
                continue
            # As in generation, the thought and the token that ends the response count.
            said = [text for text in (_text(row["response"]), _text(row.get("reasoning"))) if text]
            num_tokens = sum(len(self.tokenizer.encode(text, add_special_tokens=False)) for text in said) + 1
            if num_tokens > max_tokens:
                count["too long"] += 1
                continue
            reason = "stop" if thought.closed else "length"
            stored = asdict(Generation(thought.answer, reason, 0, num_tokens, reasoning=thought.reasoning))
            rows[identity] = stored | {"created": datetime.now(UTC).isoformat(timespec="seconds"), "origin": origin}
            found.add(identity)
            count["silent"] += not thought.answer
            if len(rows) == batch:
                yield rows
                rows = {}
        if rows:
            yield rows
        self._tell(origin, len(found), count)

    def _tell(self, origin: str, found: int, count: Counter[str]) -> None:
        logger.info(
            "%s: %d responses read from %s; other rows: %d match no open prompt, %d are empty, %d exceed max_tokens %d",
            *(self.name, found, origin, count["unmatched"], count["empty"], count["too long"]),
            self.teacher.sampling.max_tokens,
        )
        if self.source.tokenizer:
            logger.info(
                "%s: its tokens are estimates, counted by the tokenizer of %s", self.name, self.source.tokenizer
            )
        if silent := count["silent"]:
            logger.info("%s: %d of these responses are empty, and kept", self.name, silent)


def read_scores(wanted: Set[tuple[str, str]], name: str, source: Precomputed) -> dict[tuple[str, str], float]:
    """The scores that the data set gives to these responses; of several rows with the same prompt and response, their
    mean. Responses without a score are counted in the log, by why they have none.

    Args:
        wanted: (prompt_id, response) of the teacher's responses, without their thoughts.
        name: the teacher's key in params.yaml.
        source: its `precomputed`, with a `score`.

    Returns:
        (prompt_id, response) -> score, of those that have one.

    Raises:
        InputError: the rows cannot be read, or no response has a score.
    """
    if source.score is None:
        raise InputError(f"teachers.{name}.precomputed.score is null, which the quality method given needs; name it")
    scores, empty, wrong = defaultdict[tuple[str, str], list[float]](list), set[tuple[str, str]](), list[str]()
    fields = {"prompt": source.prompt, "response": source.response, "score": source.score}
    for number, row in source.read(HERE, numeric=["score"], asked=["prompt"], **fields):
        key, text = (_identity(row), _thought(row).answer), (row["score"] or "").strip()
        if key not in wanted:
            continue
        score = float(text) if NUMBER.fullmatch(text) else math.nan
        if math.isfinite(score):
            scores[key].append(score)
        elif text:
            wrong.append(f"row {number}: {text[:40]!r}")
        else:
            empty.add(key)
    absent = len(wanted) - len(scores)
    told = (
        f"{absent} of {len(wanted)} responses have no score in {source.name} (with an empty one: "
        f"{len(empty - scores.keys())}; generated responses have none); {len(wrong)} scores are no finite number"
        f"{' (' + ', '.join(wrong[:3]) + ')' if wrong else ''}"
    )
    if not scores:
        raise InputError(
            f"teachers.{name}.precomputed.score: {told}; correct its column or template, or choose another method "
            f"than given in quality.methods"
        )
    logger.log(
        logging.WARNING if absent or wrong else logging.INFO,
        *("%s: %s; %d scores were read", name, told, sum(map(len, scores.values()))),
    )
    return {key: math.fsum(values) / len(values) for key, values in scores.items()}


def _identity(row: Mapping[str, Any]) -> str:
    """prompt_id of a row. A conversation that is unfit has no prompt's id."""
    return prompt_id(row["prompt"].messages)


def _thought(row: Mapping[str, Any]) -> Thought:
    """Thought and answer of a row; a thought in a column of its own comes first."""
    thought, apart = split_thought(_text(row["response"]), opened=None), _text(row.get("reasoning"))
    if not apart:
        return thought
    reasoning = "\n\n".join(filter(None, (apart, thought.reasoning)))
    return Thought(reasoning, thought.answer, closed=bool(thought.answer))


def _text(value: str | None) -> str:
    """A text as the tables have it: without halves of a cut surrogate pair, and blanks at its ends."""
    return (value or "").encode("utf-8", "replace").decode().strip()


def _tokenizer(name: str, teacher: Teacher, source: Precomputed) -> Any:
    where = (source.tokenizer,) if source.tokenizer else (teacher.model, teacher.revision, teacher.trust_remote_code)
    try:
        return with_chat_template(load_tokenizer(*where), date=teacher.date)
    except InputError as error:
        raise InputError(
            f"teachers.{name}.precomputed: a tokenizer is needed to count tokens; name one that is here in "
            f"precomputed.tokenizer, such as packaged:smollm2-135m-instruct: {error}"
        ) from error

"""Precomputed: responses that a teacher has already given, read from a data set instead of asked for.

They may have been made with another system prompt or sampling than the teacher's entry in params.yaml says: nothing
checks that. The store keeps them under keys of their own, with a hash of the field `precomputed` and of its file: when
either changes, the rows are read again.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from persyn.chat import encode_prompt, with_chat_template
from persyn.errors import InputError
from persyn.generation import Generation, Precomputed, Teacher
from persyn.models import load_tokenizer
from persyn.prompts.sources import normalise, prompt_id

logger = logging.getLogger(__name__)
HERE = Path()


def precomputed_suffix(teacher: Teacher) -> str:
    """The ending of the store's keys of precomputed responses, which generated ones lack: a hash of the field
    `precomputed` and of the file it names; empty where the teacher has none.

    Raises:
        InputError: the file is missing, or a hub dataset is not pinned.
    """
    source = teacher.precomputed
    if source is None:
        return ""
    # Later fields count only where they are set, so that stores that were filled before are read as before.
    later = {"tokenizer", "keep_empty"}
    given = source.model_dump(exclude=later) | source.model_dump(include=later, exclude_defaults=True)
    fields = json.dumps([given, source.origin(HERE)], sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()[:16]


def read_precomputed(
    prompts: Mapping[str, str], name: str, teacher: Teacher, source: Precomputed
) -> dict[str, dict[str, Any]]:
    """The teacher's precomputed responses to these prompts, as rows of the store with their `origin`.

    A prompt gets its first row that fits. A row that matches no prompt, is empty (unless `keep_empty`), or has more
    than max_tokens is skipped and counted in the log.

    Args:
        prompts: prompt_id -> text of the prompts that have no response yet.
        name: the teacher's key in params.yaml.
        source: its `precomputed`.

    Returns:
        prompt_id -> row.

    Raises:
        InputError: the rows cannot be read, or the teacher has no tokenizer to count their tokens.
    """
    origin, count, max_tokens = source.origin(HERE), Counter[str](), teacher.sampling.max_tokens
    found: dict[str, dict[str, Any]] = {}
    tokenizer: Any = None
    for row in source.read(HERE, prompt=source.prompt, response=source.response).values():
        identity = prompt_id(normalise(row["prompt"] or ""))
        response = (row["response"] or "").encode("utf-8", "replace").decode().strip()
        if identity not in prompts or (identity in found and (response or source.keep_empty)):
            count["unmatched"] += 1
            continue
        if not response and not source.keep_empty:
            count["empty"] += 1
            continue
        tokenizer = tokenizer or _tokenizer(name, teacher, source)
        # As in generation, the token that ends the response counts.
        num_tokens = len(tokenizer.encode(response, add_special_tokens=False)) + 1
        if num_tokens > max_tokens:
            count["too long"] += 1
            continue
        num_prompt_tokens = len(encode_prompt(tokenizer, teacher.messages(prompts[identity])))
        stored = asdict(Generation(response, "stop", num_prompt_tokens, num_tokens))
        found[identity] = stored | {"created": datetime.now(UTC).isoformat(timespec="seconds"), "origin": origin}
    logger.info(
        "%s: %d responses read from %s; other rows: %d match no open prompt, %d are empty, %d exceed max_tokens %d",
        *(name, len(found), origin, count["unmatched"], count["empty"], count["too long"], max_tokens),
    )
    if source.tokenizer:
        logger.info("%s: its tokens are estimates, counted by the tokenizer of %s", name, source.tokenizer)
    if silent := sum(not row["response"] for row in found.values()):
        logger.info("%s: %d of these responses are empty, and kept", name, silent)
    return found


def _tokenizer(name: str, teacher: Teacher, source: Precomputed) -> Any:
    where = (source.tokenizer,) if source.tokenizer else (teacher.model, teacher.revision, teacher.trust_remote_code)
    try:
        return with_chat_template(load_tokenizer(*where))
    except InputError as error:
        raise InputError(
            f"teachers.{name}.precomputed: a tokenizer is needed to count tokens; name one that is here in "
            f"precomputed.tokenizer, such as packaged:smollm2-135m-instruct: {error}"
        ) from error

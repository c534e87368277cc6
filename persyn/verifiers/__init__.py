"""Verifiers: properties of a response that can be checked without a model.

An example of a `reference` for `checkers` (IFEval's form):
[{"instruction_id": "length_constraints:number_words", "kwargs": {"relation": "less than", "num_words": 40}}]
"""

import contextlib
import json
import tempfile
from pathlib import Path

from persyn.errors import InputError
from persyn.files import cache_folder
from persyn.verifiers.answers import read_reference, read_response, same

ABBREVIATIONS = "dr mr mrs ms prof st vs etc e.g i.e no fig a.m p.m u.s inc ltd jr sr"
"""A full stop after these does not end a sentence."""


def share_of_checks(prompt: str, response: str, reference: str) -> float:
    """The share of the instructions in `reference` that `response` follows, by lm-eval's strict IFEval checkers."""
    prepare_ifeval()
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_strict

    try:
        checks = json.loads(reference)
        names, kwargs = [check["instruction_id"] for check in checks], [check["kwargs"] for check in checks]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"reference {reference[:80]!r} is not a json list of {{instruction_id, kwargs}}") from error
    unknown = [name for name in names if name not in INSTRUCTION_DICT]
    if unknown or not names:
        raise InputError(f"reference {reference[:80]!r}: unknown instruction {unknown}; see IFEval's registry")
    example = InputExample(key=0, instruction_id_list=names, prompt=prompt, kwargs=kwargs)
    followed = test_instruction_following_strict(example, response).follow_instruction_list
    return sum(followed) / len(followed)


def is_right_answer(prompt: str, response: str, reference: str) -> float:
    """1.0 if the final answer of `response` means the same as `reference`, else 0.0; docs/answers.md says what means
    what.

    Raises:
        InputError: the reference is empty.
    """
    golds = read_reference(reference)
    if not golds:
        raise InputError(f"reference {reference!r} of the prompt {prompt[:60]!r} is empty; give the final answer")
    answers = read_response(response, any(gold.letter for gold in golds))
    return float(any(same(gold, answer) for gold in golds for answer in answers))


def prepare_ifeval() -> None:
    """Make IFEval's checkers deterministic and self-contained; call it before lm-eval imports them.

    Language detection gets a fixed seed. To avoid a download, nltk gets a sentence splitter if it has none: an
    installed punkt_tab is used, otherwise a minimal English one (Punkt's own defaults and a list of common
    abbreviations) is written to the cache.
    """
    import langdetect
    import nltk
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    langdetect.DetectorFactory.seed = 0
    folder = cache_folder() / "nltk"
    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))
    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        parameters = PunktParameters()
        parameters.abbrev_types = set(ABBREVIATIONS.split())
        tokenizers = folder / "tokenizers"
        tokenizers.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=tokenizers) as scratch:
            english = Path(scratch) / "punkt_tab" / "english"
            english.mkdir(parents=True)
            save_punkt_params(parameters, dir=str(english))
            with contextlib.suppress(OSError):  # another process was first
                english.parent.rename(tokenizers / "punkt_tab")

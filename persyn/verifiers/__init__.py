"""Verifiers: properties of a response that can be checked without a model.

An example of a `reference` for `checkers` (IFEval's form):
[{"instruction_id": "length_constraints:number_words", "kwargs": {"relation": "less than", "num_words": 40}}]
"""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from persyn.errors import InputError
from persyn.files import cache_folder
from persyn.verifiers.answers import fault, read_reference, read_response, same
from persyn.verifiers.instructions import follows, read_checks

ABBREVIATIONS = "dr mr mrs ms prof st vs etc e.g i.e no fig a.m p.m u.s inc ltd jr sr"
"""A full stop after these does not end a sentence."""


def share_of_checks(prompt: str, response: str, reference: str) -> float:
    """The share of the instructions in `reference` that `response` follows.

    Raises:
        InputError: the reference is not a list of known instructions with all their arguments.
    """
    checks = read_checks(reference)
    prepare_ifeval()
    return sum(follows(response, name, arguments) for name, arguments in checks) / len(checks)


def is_right_answer(prompt: str, response: str, reference: str) -> float:
    """1.0 if the final answer of `response` means the same as `reference`, else 0.0; docs/answers.md says what means
    what.

    Raises:
        InputError: the reference is empty.
    """
    golds = read_reference(reference)
    if not golds:
        raise InputError(f"reference {reference!r} of the prompt {prompt[:60]!r} is empty; give the final answer")
    answers = read_response(response, any(gold.letter for gold in golds), any(gold.words for gold in golds))
    return float(any(same(gold, answer) for gold in golds for answer in answers))


def check_references(prompts: pl.DataFrame | pl.LazyFrame, methods: Mapping[Any, str]) -> None:
    """Refuse references with which no response could be compared, and parallel prompts without one that is needed.

    Args:
        prompts: PROMPTS.
        methods: domain -> quality method. Those that read no reference, or any, refuse none.

    Raises:
        InputError: some are missing, cannot be read, or can be read in two ways; says how many of all domains and
            which are the first.
    """
    faults, first = Counter[str](), list[str]()
    compared = pl.col("domain").is_in([domain for domain, method in methods.items() if method in REFERENCE_FAULTS])
    given = prompts.lazy().filter(compared).select("domain", "source", "reference").drop_nulls()
    for batch in given.collect_batches():
        for domain, origin, reference in batch.iter_rows():
            if why := REFERENCE_FAULTS[methods[domain]](reference):
                faults[domain] += 1
                first = [*first, f"{why} (source {origin})"][:3]
    wrong = []
    if faults:
        wrong.append(
            f"{faults.total()} references cannot be used by quality.methods of {', '.join(sorted(faults))}; first: "
            f"{'; '.join(first)}"
        )
    without = prompts.lazy().filter("parallel", pl.col("reference").is_null()).collect()
    for (domain,), rows in without.group_by("domain", maintain_order=True):
        if methods.get(domain) in COMPARING:
            wrong.append(
                f"{rows.height} parallel prompts of {domain} have no reference, which {methods[domain]} needs; first: "
                f"prompt {rows['prompt_id'][0]} (source {rows['source'][0]})"
            )
    if wrong:
        raise InputError(
            f"{'; and '.join(wrong)}; correct them, or name another column as `reference` of the source, or "
            f"choose another method, such as reward_model or judge"
        )


def _fault_of_answer(reference: str) -> str:
    why = fault(reference)
    return f"reference {reference[:80]!r} {why}" if why else ""


def _fault_of_checks(reference: str) -> str:
    try:
        read_checks(reference)
    except InputError as error:
        return str(error)
    return ""


REFERENCE_FAULTS = {"checkers": _fault_of_checks, "math_verify": _fault_of_answer}
"""Quality method -> why it cannot use a reference; empty if it can."""
COMPARING = ("checkers", "math_verify", "unit_tests")
"""Quality methods that need a reference."""


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

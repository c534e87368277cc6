"""Instructions that a response's text shows to be followed or not: what a reference may say, and the checks.

The names are IFEval's, and most checks are lm-eval's. Ours are those of keywords, which are text and no patterns, of
letters, which may be any character, and of languages, whose detector holds for capitals and short texts. lm-eval draws
an argument that is missing at random; here every argument must be given.
"""

import functools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

from persyn.errors import InputError, did_you_mean
from persyn.settings import shown

RELATIONS = ("less than", "at least")
ARGUMENTS: dict[str, dict[str, str]] = {
    "keywords:existence": {"keywords": "texts"},
    "keywords:frequency": {"keyword": "text", "frequency": "count", "relation": "relation"},
    "keywords:forbidden_words": {"forbidden_words": "texts"},
    "keywords:letter_frequency": {"letter": "letter", "let_frequency": "count", "let_relation": "relation"},
    "language:response_language": {"language": "language"},
    "length_constraints:number_sentences": {"num_sentences": "count", "relation": "relation"},
    "length_constraints:number_paragraphs": {"num_paragraphs": "count"},
    "length_constraints:number_words": {"num_words": "count", "relation": "relation"},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": "count",
        "nth_paragraph": "count",
        "first_word": "text",
    },
    "detectable_content:number_placeholders": {"num_placeholders": "count"},
    "detectable_content:postscript": {"postscript_marker": "text"},
    "detectable_format:number_bullet_lists": {"num_bullets": "count"},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": "count"},
    "detectable_format:multiple_sections": {"section_spliter": "text", "num_sections": "count"},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": "text"},
    "startend:end_checker": {"end_phrase": "text"},
    "startend:quotation": {},
    "change_case:capital_word_frequency": {"capital_frequency": "count", "capital_relation": "relation"},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
}
"""Instruction -> its arguments and what each must be."""
LANGUAGES = tuple(
    "ar bg bn cs de el en es fa fi fr gu he hi hu id it ja kn ko ml mr ne nl "  # noqa: SIM905
    "pa pl pt ro ru sv sw ta te th tr uk ur vi zh".split()
)
"""The languages that are told apart: IFEval's thirty and nine more."""
SCRIPTS = {
    **dict.fromkeys(("bg", "ru", "uk"), "CYRILLIC"),
    **dict.fromkeys(("ar", "fa", "ur"), "ARABIC"),
    **dict.fromkeys(("hi", "mr", "ne"), "DEVANAGARI"),
    **{"bn": "BENGALI", "el": "GREEK", "gu": "GUJARATI", "he": "HEBREW", "kn": "KANNADA", "ml": "MALAYALAM"},
    **{"pa": "GURMUKHI", "ta": "TAMIL", "te": "TELUGU", "th": "THAI", "zh": "CJK"},
    **{"ja": "HIRAGANA KATAKANA CJK", "ko": "HANGUL"},
}
"""The scripts of a language that is not written in Latin letters."""
UNSPACED = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3005\u3007\u3040-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff]")
"""A letter of a script that writes no blanks between words."""
SURE = 0.5
"""Below this probability of the likeliest language a text is too short to tell. It counts as right, as in IFEval, if
its letters are of the language's script."""
MOST = 100_000
"""The largest number of an instruction: no response has more of anything."""
NEEDS = {
    "text": "a text that is not empty",
    "texts": "a list of texts that are not empty",
    "letter": "one character",
    "count": f"a whole number from 1 to {MOST:,}",
    "relation": " or ".join(map(repr, RELATIONS)),
    "language": f"one of {', '.join(LANGUAGES)}",
}


def read_checks(reference: str) -> list[tuple[str, dict[str, Any]]]:
    """The instructions in a reference, each with its arguments; those that are null are left out.

    Raises:
        InputError: the reference is not such a list, or an instruction is unknown or has not the arguments it needs.
    """
    start = f"reference {reference[:80]!r}"
    try:
        checks = json.loads(reference)
        found = [(str(check["instruction_id"]), check["kwargs"]) for check in checks]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{start} is not a json list of {{instruction_id, kwargs}}") from error
    unknown = [name for name, _ in found if name not in ARGUMENTS]
    if unknown or not found:
        near = did_you_mean(unknown[0], list(ARGUMENTS)) if unknown else ""
        raise InputError(f"{start}: unknown instruction {unknown}; see IFEval's registry{near}")
    return [(name, _arguments(start, name, kwargs)) for name, kwargs in found]


def _arguments(start: str, name: str, kwargs: Any) -> dict[str, Any]:
    if not isinstance(kwargs, dict):
        raise InputError(f"{start}: kwargs of {name} is {shown(kwargs)}; it must be a mapping, {{}} if it takes none")
    needed, given = ARGUMENTS[name], {key: value for key, value in kwargs.items() if value is not None}
    extra = sorted(set(given) - set(needed))
    if extra:
        raise InputError(f"{start}: {name} takes no {extra[0]}; it takes {', '.join(needed) or 'nothing'}")
    for key, kind in needed.items():
        if not _is_valid(kind, given.get(key)):
            is_there = f"is {shown(given[key])}" if key in given else "is missing"
            raise InputError(f"{start}: {key} of {name} {is_there}; it must be {NEEDS[kind]}")
        if kind == "count":
            given[key] = int(given[key])
    if given.get("nth_paragraph", 1) > given.get("num_paragraphs", 1):
        raise InputError(f"{start}: nth_paragraph of {name} is more than its num_paragraphs")
    return given


def _is_valid(kind: str, value: Any) -> bool:
    if kind == "count":
        return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= MOST and value % 1 == 0
    if kind == "texts":
        return isinstance(value, list) and bool(value) and all(_is_valid("text", each) for each in value)
    if not isinstance(value, str) or not value.strip():
        return False
    if kind in ("relation", "language"):
        return value in {"relation": RELATIONS, "language": LANGUAGES}[kind]
    return kind != "letter" or len(value.strip()) == 1


def follows(response: str, name: str, arguments: dict[str, Any]) -> bool:
    """Whether a response follows an instruction; an empty one follows none. lm-eval must be ready to be imported."""
    if not response.strip():
        return False
    if name in OURS:
        return OURS[name](response, **arguments)
    if name == "length_constraints:nth_paragraph_first_word":  # lm-eval counts what is written, and indexes blanks too
        response = re.sub(r"\n\s*\n", "\n\n", response.strip())
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    pattern = {"section_spliter"} if arguments.get("postscript_marker") in ("P.S.", "P.P.S") else PATTERNS
    check = INSTRUCTION_DICT[name](name)
    check.build_description(
        **{key: re.escape(value.strip()) if key in pattern else value for key, value in arguments.items()}
    )
    return bool(check.check_following(response))


PATTERNS = {"section_spliter", "postscript_marker"}
"""Arguments that lm-eval's checks take for patterns."""


def is_written_in(text: str, language: str) -> bool:
    """Whether a text is in a language, or too short to tell."""
    likeliest, probability = _identifier().rank(text.lower())[0]
    return likeliest == language or (float(probability) < SURE and _is_in_script_of(text, language))


def _is_in_script_of(text: str, language: str) -> bool:
    """Whether most letters are of a script in which the language is written; so too if there are none."""
    found = Counter(unicodedata.name(letter, "?").partition(" ")[0] for letter in text if letter.isalpha())
    return not found or found.most_common(1)[0][0] in SCRIPTS.get(language, "LATIN").split()


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier


def _relates(number: int, relation: str, threshold: int) -> bool:
    return number < threshold if relation == "less than" else number >= threshold


def _has_keywords(response: str, keywords: list[str]) -> bool:
    return all(keyword.strip().lower() in response.lower() for keyword in keywords)


def _keyword_frequency(response: str, keyword: str, frequency: int, relation: str) -> bool:
    return _relates(response.lower().count(keyword.strip().lower()), relation, frequency)


def _letter_frequency(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _relates(response.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _has_no_forbidden(response: str, forbidden_words: list[str]) -> bool:
    return not any(_word(word.strip()).search(response) for word in forbidden_words)


@functools.lru_cache
def _word(word: str) -> re.Pattern[str]:
    """A word of its own. A sign at an end, as in C++, or a letter of a script without blanks needs none there."""
    before = r"(?<!\w)" if re.match(r"\w", word) and not UNSPACED.match(word[0]) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", word) and not UNSPACED.match(word[-1]) else ""
    return re.compile(before + re.escape(word) + after, re.IGNORECASE)


OURS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _has_keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _has_no_forbidden,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": is_written_in,
    "change_case:english_capital": lambda response: response.isupper() and is_written_in(response, "en"),
    "change_case:english_lowercase": lambda response: response.islower() and is_written_in(response, "en"),
}

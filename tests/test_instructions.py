"""Checks of instructions: what their references may say, keywords as text, and the language of a text."""

import json

import pytest

from persyn.errors import InputError
from persyn.verifiers import check_references, prepare_ifeval, share_of_checks
from persyn.verifiers.instructions import ARGUMENTS, LANGUAGES, is_written_in, read_checks
from tests.support.tables import prompts_table


def one(name: str, kwargs: object) -> str:
    return json.dumps([{"instruction_id": name, "kwargs": kwargs}])


NTH = "length_constraints:nth_paragraph_first_word"
WORDS = "length_constraints:number_words"


def test_every_instruction_of_ifeval_is_known() -> None:
    prepare_ifeval()
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    from lm_eval.tasks.ifeval.instructions_util import LANGUAGE_CODES

    assert set(ARGUMENTS) == set(INSTRUCTION_DICT)
    assert set(LANGUAGE_CODES) <= set(LANGUAGES)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (WORDS, {}, r"num_words of .*number_words is missing; it must be a whole number from 1"),
        (WORDS, {"num_words": 30}, r"relation of .* is missing; it must be 'less than' or 'at least'"),
        (WORDS, {"num_words": 30, "relation": None}, "relation of .* is missing"),
        (WORDS, {"num_words": 30, "relation": "at most"}, "relation of .* is 'at most'; it must be"),
        (WORDS, {"num_words": "30", "relation": "at least"}, "num_words of .* is '30'; it must be a whole number"),
        (WORDS, {"num_words": 2.5, "relation": "at least"}, "num_words of .* is 2.5"),
        (WORDS, {"num_words": 0, "relation": "at least"}, "num_words of .* is 0"),
        (WORDS, {"num_words": True, "relation": "at least"}, "num_words of .* is true"),
        (WORDS, {"num_words": 3, "relation": "at least", "words": 3}, "takes no words; it takes num_words"),
        (WORDS, None, "kwargs of .* is null; it must be a mapping"),
        ("punctuation:no_comma", None, "kwargs of .* is null; it must be a mapping"),
        ("punctuation:no_comma", [], "kwargs of .* must be a mapping"),
        ("punctuation:no_comma", {"num_words": 3}, "takes no num_words; it takes nothing"),
        ("keywords:existence", {"keywords": "time"}, "keywords of .* is 'time'; it must be a list of texts"),
        ("keywords:existence", {"keywords": []}, "keywords of .* must be a list of texts"),
        ("keywords:existence", {"keywords": ["a", 3]}, "keywords of .* must be a list of texts"),
        ("keywords:forbidden_words", {"forbidden_words": [" "]}, "forbidden_words of .* must be a list of texts"),
        (
            "keywords:letter_frequency",
            {"letter": "ab", "let_frequency": 1, "let_relation": "at least"},
            "one character",
        ),
        ("language:response_language", {"language": "English"}, "language of .* is 'English'; it must be one of ar, "),
        ("language:response_language", {"language": "la"}, "language of .* is 'la'"),
        (WORDS, {"num_words": 10**400, "relation": "at least"}, "num_words of .* a whole number from 1 to 100,000"),
        (WORDS, {"num_words": 1e308, "relation": "at least"}, "num_words of .* a whole number from 1 to 100,000"),
        ("startend:end_checker", {"end_phrase": ""}, "end_phrase of .* must be a text that is not empty"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "so"},
            "nth_paragraph of .* is more than its num_paragraphs",
        ),
        (
            "length_constraints:number_wordz",
            {},
            r"unknown instruction .*; did you mean length_constraints:number_words\?",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_line_before_anything_is_generated(
    name: str, kwargs: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_checks(one(name, kwargs))
    prompts = prompts_table(["p"], "instruction", [one(name, kwargs)])
    with pytest.raises(InputError, match=message) as error:
        check_references(prompts, {"instruction": "checkers"})
    assert "\n" not in str(error.value)


def test_an_argument_that_is_null_or_whole_though_a_float_is_as_in_the_data_sets() -> None:
    checks = read_checks(one(WORDS, {"num_words": 3.0, "relation": "less than", "keywords": None}))
    assert checks == [(WORDS, {"num_words": 3, "relation": "less than"})]


@pytest.mark.parametrize(
    ("name", "kwargs", "follows", "breaks"),
    [
        ("keywords:existence", {"keywords": ["$5", "C++"]}, "C++ costs $5.", "It costs 5 in C."),
        ("keywords:existence", {"keywords": ["(*"]}, "a (* b", "a * b"),
        ("keywords:existence", {"keywords": ["Time"]}, "time flies", "it flies"),
        ("keywords:frequency", {"keyword": "3.5", "frequency": 2, "relation": "at least"}, "3.5 or 3.5", "3.5 or 345"),
        ("keywords:frequency", {"keyword": "a|b", "frequency": 1, "relation": "less than"}, "a b", "a|b"),
        ("keywords:forbidden_words", {"forbidden_words": ["C++"]}, "I like C.", "I like C++ a lot."),
        ("keywords:forbidden_words", {"forbidden_words": ["$5"]}, "It costs 5.", "It costs $5."),
        ("keywords:forbidden_words", {"forbidden_words": ["3.5"]}, "It is 345 or 13.5.", "It is 3.5."),
        ("keywords:forbidden_words", {"forbidden_words": ["art"]}, "a party", "an Art."),
        (
            "keywords:forbidden_words",
            {"forbidden_words": ["\u65e5\u672c"]},
            "\u4e2d\u56fd\u4eba",
            "\u79c1\u306f\u65e5\u672c\u4eba\u3067\u3059",
        ),
        (NTH, {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Hi"}, "\n\na\n\n\n\nhi b", "hi a\n\n\n\nb"),
        ("language:response_language", {"language": "en"}, "Hello", "\u041f\u0440\u0438\u0432\u0435\u0442"),
        ("language:response_language", {"language": "ko"}, "\uc548\ub155", "OK"),
        ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "at least"}, "a!!", "a!"),
        ("detectable_format:multiple_sections", {"section_spliter": "Part (", "num_sections": 1}, "Part (1", "Part 1"),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a\nP. S. b", "a\nPxS b"),
        ("detectable_content:postscript", {"postscript_marker": "N.B."}, "a\nN.B. b", "a\nNxBx b"),
        ("startend:end_checker", {"end_phrase": "See you (soon)."}, "Hi. See you (soon).", "Hi."),
        ("change_case:english_capital", {}, "WE WILL MEET AGAIN SOON.", "We will meet again soon."),
        ("change_case:english_capital", {}, "YES.", "LE CHAT DORT SUR LE TAPIS DU SALON."),
        ("change_case:english_lowercase", {}, "dogs are loyal animals.", "die katze schläft auf dem teppich."),
        (
            "language:response_language",
            {"language": "de"},
            "Die Katze schläft im Haus.",
            "The cat sleeps here.",
        ),
    ],
)
def test_what_follows_and_what_breaks_an_instruction(
    name: str, kwargs: dict[str, object], follows: str, breaks: str
) -> None:
    assert [share_of_checks("p", response, one(name, kwargs)) for response in (follows, breaks, "")] == [1.0, 0.0, 0.0]


CAPITALS = (
    "THE CAT SAT ON THE MAT.",
    "HELLO WORLD.",
    "I LOVE READING BOOKS IN THE EVENING.",
    "MY FAVORITE COLOR IS BLUE.",
    "BREAD IS MADE FROM FLOUR AND WATER.",
    "NO, THANK YOU.",
    "LEARNING THE PIANO TAKES TIME AND PATIENCE.",
    "SUMMER IS HOT AND WINTER IS COLD.",
    "GOOD MORNING EVERYONE.",
    "CLIMATE CHANGE IS A GLOBAL PROBLEM.",
    "ARTIFICIAL INTELLIGENCE TRANSFORMS INDUSTRIES WORLDWIDE.",
    "TURN LEFT HERE.",
    "BREAKFAST IS READY.",
    "TEA OR COFFEE?",
    "WE WON.",
)
FOREIGN = {
    "es": "El gato está en la alfombra y duerme.",
    "fr": "Le chat dort sur le tapis dans le salon.",
    "de": "Die Katze schläft auf dem Teppich im Wohnzimmer.",
    "it": "Il gatto dorme sul tappeto del soggiorno.",
    "pt": "O gato dorme no tapete da sala e não quer sair.",
    "fi": "Kissa nukkuu matolla olohuoneessa.",
    "pl": "Kot śpi na dywanie w salonie.",
    "sw": "Paka analala kwenye zulia sebuleni.",
    "vi": "Con mèo ngủ trên tấm thảm trong phòng khách.",
}


@pytest.mark.parametrize("text", CAPITALS)
def test_english_in_capitals_is_english_and_nothing_else(text: str) -> None:
    assert is_written_in(text, "en")


@pytest.mark.parametrize("language", FOREIGN)
def test_other_languages_are_told_apart_in_any_case(language: str) -> None:
    for text in (FOREIGN[language], FOREIGN[language].upper()):
        assert [each for each in ("en", *FOREIGN) if is_written_in(text, each)] == [language]


def test_the_same_row_has_the_same_score_every_time() -> None:
    reference = one("keywords:frequency", {"keyword": "time", "frequency": 1, "relation": "at least"})
    assert {share_of_checks("p", "time flies", reference) for _ in range(9)} == {1.0}


@pytest.mark.parametrize("reference", ["[" * 100_000, f'[{{"instruction_id": "x", "kwargs": {{"n": {"9" * 5000}}}}}]'])
def test_a_reference_that_json_cannot_read_is_refused_in_one_line(reference: str) -> None:
    with pytest.raises(InputError, match="is not a json list") as error:
        read_checks(reference)
    assert "\n" not in str(error.value)

import polars as pl
import pytest

from persyn.defects import DETECTORS, Policies, count_defects, find_defects, unfit_responses
from persyn.errors import InputError
from persyn.schemas import DEFECTS, check_table, fill_table
from tests.support.tables import prompts_table, responses_table

LOOP = "The answer is 12. " * 30
STORY = (
    "An old clock stood in the hall. Every night it struck twelve, and every night the cat looked up. One winter the "
    "spring broke. The cat waited, then slept. In the morning a child wound it again, and they both listened."
)


@pytest.mark.parametrize(
    ("prompt", "response", "kinds"),
    [
        ("Tell a story.", STORY, set()),
        ("Tell a story.", "", {"empty"}),
        ("Tell a story.", " \n\t", {"empty"}),
        ("Do it.", "I'm sorry, but I can't help with that.", {"refusal"}),
        ("Do it.", "As an AI language model, I cannot provide medical advice.", {"refusal"}),
        ("Do it.", "Sorry, but as an AI model trained by us, I won't write that.", {"refusal"}),
        ("Do it.", "I’m unable to assist with this request.", {"refusal"}),  # noqa: RUF001
        ("Do it.", "Unfortunately, I will not write that.", {"refusal"}),
        ("Tell a story.", "I can't believe it is morning already, said the cat.", set()),
        ("Do it.", "I cannot wait to help!", set()),
        ("What is 3 * 4?", LOOP, {"repetition"}),
        ("What is 3 * 4?", STORY + " Well, " + LOOP, {"repetition"}),
        ("Count.", ", ".join(map(str, range(200))), set()),
        ("What is 3 * 4?", "<think>3 and 3 and", {"unclosed_think"}),
        ("What is 3 * 4?", "<think>3 * 4 = 12</think>12", set()),
        ("What is 3 * 4?", "<think>a</think>12<think>b", {"unclosed_think"}),
        ("Search.", '<tool_call>{"name": "search"}</tool_call>', {"tool_call"}),
        ("Search.", '{"name": "search", "arguments": {"q": "cats"}}', {"tool_call"}),
        ("Give json.", '{"name": "Tom", "age": 3}', set()),
        ("Tell a story.", "从前有一个钟", {"other_script"}),
        ("讲一个故事", "从前有一个钟", set()),
        ("Translate to Chinese: 钟", "从前有一个钟", set()),
        ("2 + 2 = ?", "four", set()),
    ],
)
def test_each_defect_is_found_and_sound_text_is_not(prompt: str, response: str, kinds: set[str]) -> None:
    assert {kind for kind, detect in DETECTORS.items() if detect(prompt, response)} == kinds


def test_a_megabyte_is_looked_at_in_no_time() -> None:
    forks = ["As an as an , " * 99, "but as a x, " * 99, "sorry, but as a b, " * 99]  # many ways to match, or to fail
    for text in (
        *forks,
        "a" * 1_000_000,
        STORY * 5000,
        "I am sorry " * 100_000,
        "<think>" * 100_000,
        '{"name": ' * 100_000,
    ):
        for detect in DETECTORS.values():
            detect(text, text)


def test_counts_add_up_and_an_error_has_no_defect() -> None:
    prompts = prompts_table(["one", "two", "three"])
    responses = responses_table(prompts[:2], "t", ["", STORY], "length")
    responses = responses.vstack(responses_table(prompts[2:], "t", [""], "error"))
    defects = find_defects(prompts, responses)
    check_table(defects, DEFECTS, "defects")
    assert defects["length"].to_list() == [True, True]
    assert not fill_table(defects.drop("length"), DEFECTS)["length"].any(), "a table of an earlier version is read"
    assert defects.height == 2
    counts = count_defects(defects, responses)["t"]
    assert counts == {"responses": 3, "error": 1, "length": 2, **dict.fromkeys(DETECTORS, 0), "empty": 1}


def test_policies_are_checked() -> None:
    assert Policies(empty="keep", refusal="drop").kinds("drop") == [
        "refusal",
        "repetition",
        "unclosed_think",
        "tool_call",
        "length",
    ]
    with pytest.raises(InputError, match=r"defects\.refusal is 'penalize'; .*keep, penalise, drop"):
        Policies.parse({"refusal": "penalize"}, "defects")


def test_a_response_is_unfit_if_every_sample_has_a_defect_that_is_dropped() -> None:
    clean = dict.fromkeys(DEFECTS.names()[2:], False)
    rows = [
        {"prompt_id": "p", "teacher": "cut", **clean, "length": True},
        {"prompt_id": "p", "teacher": "refuses", **clean, "refusal": True},
        {"prompt_id": "p", "teacher": "twice", **clean, "length": True},
        {"prompt_id": "p", "teacher": "twice", **clean},
        {"prompt_id": "p", "teacher": "looped", **clean, "length": True},
        {"prompt_id": "p", "teacher": "looped", **clean, "repetition": True},
    ]
    table = pl.DataFrame(rows, schema=DEFECTS)
    assert unfit_responses(table, Policies())["teacher"].to_list() == ["cut", "looped"]
    kept = Policies(length="keep")
    assert unfit_responses(table, kept).is_empty()
    assert unfit_responses(table, Policies(length="keep", refusal="drop"))["teacher"].to_list() == ["refuses"]

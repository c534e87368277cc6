import pytest
from conftest import prompts_table, responses_table

from persyn.dataset import build_dataset
from persyn.defects import Policies
from persyn.schemas import DATASET, InputError, check_table

PROMPTS = prompts_table(["one", "two"])


def test_a_row_is_a_prompt_and_a_completion_in_messages() -> None:
    dataset, counts = build_dataset(PROMPTS, responses_table(PROMPTS, "t", ["first", "second"]), Policies())
    assert {name: counts[name] for name in ("rows", "kept", "dropped")} == {"rows": 2, "kept": 2, "dropped": {}}
    check_table(dataset, DATASET, "dataset")
    rows = {row["prompt"][0]["content"]: row for row in dataset.to_dicts()}
    assert rows["two"]["prompt"] == [{"role": "user", "content": "two"}]
    assert rows["two"]["completion"] == [{"role": "assistant", "content": "second"}]


def test_what_is_not_trained_on_is_counted_by_reason() -> None:
    prompts = prompts_table([f"prompt {number}" for number in range(5)])
    responses = responses_table(prompts[:3], "t", ["first", " ", "I'm sorry, but I can't help with that."])
    responses = responses.vstack(responses_table(prompts[3:4], "t", ["fourth"], "length"))
    responses = responses.vstack(responses_table(prompts[4:], "t", [""], "error"))
    dataset, counts = build_dataset(prompts, responses, Policies(refusal="drop"))
    assert counts["dropped"] == {"empty": 1, "error": 1, "length": 1, "refusal": 1}
    assert counts["rows"] == counts["kept"] + sum(counts["dropped"].values()) == 5
    assert counts["teachers"]["t"]["refusal"] == counts["teachers"]["t"]["error"] == 1
    assert dataset["completion"].to_list() == [[{"role": "assistant", "content": "first"}]]
    kept, _ = build_dataset(prompts, responses, Policies(empty="keep", refusal="penalise"), keep_length=True)
    assert kept.height == 4, "an error is never trained on"


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(InputError, match=r"dropped: \{'length': 2\}"):
        build_dataset(PROMPTS, responses_table(PROMPTS, "t", ["first", "second"], "length"), Policies())

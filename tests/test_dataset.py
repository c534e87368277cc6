import pytest
from conftest import prompts_table, responses_table

from persyn.dataset import build_dataset
from persyn.schemas import DATASET, InputError, check_table

PROMPTS = prompts_table(["one", "two"])


def test_a_row_is_a_prompt_and_a_completion_in_messages() -> None:
    dataset = build_dataset(PROMPTS, responses_table(PROMPTS, "t", ["first", "second"]))
    check_table(dataset, DATASET, "dataset")
    rows = {row["prompt"][0]["content"]: row for row in dataset.to_dicts()}
    assert rows["two"]["prompt"] == [{"role": "user", "content": "two"}]
    assert rows["two"]["completion"] == [{"role": "assistant", "content": "second"}]


def test_empty_and_cut_responses_are_left_out() -> None:
    assert build_dataset(PROMPTS, responses_table(PROMPTS, "t", ["first", ""])).height == 1
    cut = responses_table(PROMPTS, "t", ["first", "second"], "length")
    assert build_dataset(PROMPTS, cut, keep_length=True).height == 2
    with pytest.raises(InputError, match=r"finish reasons \{'length': 2\}"):
        build_dataset(PROMPTS, cut)

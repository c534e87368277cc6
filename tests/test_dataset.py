import pytest
from conftest import prompts_table, responses_table

from persyn.dataset import build_dataset
from persyn.schemas import DATASET, InputError, check_table

PROMPTS = prompts_table(["one", "two"])


def test_a_row_is_a_prompt_and_a_completion_in_messages() -> None:
    dataset, counts = build_dataset(PROMPTS, responses_table(PROMPTS, "t", ["first", "second"]))
    assert counts == {"rows": 2, "kept": 2, "dropped": {}}
    check_table(dataset, DATASET, "dataset")
    rows = {row["prompt"][0]["content"]: row for row in dataset.to_dicts()}
    assert rows["two"]["prompt"] == [{"role": "user", "content": "two"}]
    assert rows["two"]["completion"] == [{"role": "assistant", "content": "second"}]


def test_what_is_not_trained_on_is_counted_by_reason() -> None:
    _, counts = build_dataset(PROMPTS, responses_table(PROMPTS, "t", ["first", ""]))
    assert counts == {"rows": 2, "kept": 1, "dropped": {"empty": 1}}
    cut = responses_table(PROMPTS, "t", ["first", "second"], "length")
    assert build_dataset(PROMPTS, cut, keep_length=True)[0].height == 2
    with pytest.raises(InputError, match=r"dropped: \{'length': 2\}"):
        build_dataset(PROMPTS, cut)

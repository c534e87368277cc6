import polars as pl
import pytest

from persyn.dataset import DatasetSettings, build_dataset
from persyn.defects import Policies
from persyn.errors import InputError
from persyn.generation.terms import Licenses
from persyn.schemas import DATASET, QUALITY, ROUTES, check_table, fill_table
from tests.support.tables import prompts_table, responses_table, stub_teachers

PROMPTS = prompts_table(["one", "two"])
TERMS = stub_teachers("abt"), Licenses(), DatasetSettings()


def test_a_row_is_a_prompt_and_a_completion_in_messages() -> None:
    dataset, counts = build_dataset(PROMPTS, responses_table(PROMPTS, "t", ["first", "second"]), Policies(), *TERMS)
    assert {name: counts[name] for name in ("rows", "kept", "dropped")} == {"rows": 2, "kept": 2, "dropped": {}}
    check_table(dataset, DATASET, "dataset")
    rows = {row["prompt"][0]["content"]: row for row in dataset.to_dicts()}
    assert rows["two"]["prompt"] == [{"role": "user", "content": "two"}]
    assert rows["two"]["completion"] == [{"role": "assistant", "content": "second"}]
    assert DATASET.names()[:4] == ["prompt_id", "teacher", "prompt", "completion"]


def test_every_row_carries_its_terms() -> None:
    prompts = PROMPTS.with_columns(license=pl.Series(["CC0-1.0", "ODC-BY"]))
    responses = responses_table(prompts[:1], "a", ["x"]).vstack(responses_table(prompts[1:], "b", ["y"]))
    teachers = stub_teachers("a", "conditional") | stub_teachers("bc", "forbidden")
    dataset, _ = build_dataset(
        prompts, responses, Policies(), teachers, Licenses(allow_forbidden=["b"]), DatasetSettings()
    )
    terms = dataset.select("teacher", "license", "teacher_license", "training").rows()
    assert sorted(terms) == [("a", "CC0-1.0", "MIT", "conditional"), ("b", "ODC-BY", "MIT", "forbidden")]
    with pytest.raises(InputError, match=r"^teachers\.b "):
        build_dataset(prompts, responses, Policies(), teachers, Licenses(), DatasetSettings())
    assert build_dataset(prompts, responses[:1], Policies(), teachers, Licenses(), DatasetSettings())[0].height == 1, (
        "c wrote nothing"
    )


def test_what_is_not_trained_on_is_counted_by_reason() -> None:
    prompts = prompts_table([f"prompt {number}" for number in range(5)])
    responses = responses_table(prompts[:3], "t", ["first", " ", "I'm sorry, but I can't help with that."])
    responses = responses.vstack(responses_table(prompts[3:4], "t", ["fourth"], "length"))
    responses = responses.vstack(responses_table(prompts[4:], "t", [""], "error"))
    dataset, counts = build_dataset(prompts, responses, Policies(refusal="drop"), *TERMS)
    assert counts["dropped"] == {"empty": 1, "error": 1, "length": 1, "refusal": 1}
    assert counts["rows"] == counts["kept"] + sum(counts["dropped"].values()) == 5
    assert counts["teachers"]["t"]["refusal"] == counts["teachers"]["t"]["error"] == 1
    assert dataset["completion"].to_list() == [[{"role": "assistant", "content": "first"}]]
    policies, settings = Policies(empty="keep", refusal="penalise"), DatasetSettings(keep_length=True)
    kept, _ = build_dataset(prompts, responses, policies, *TERMS[:2], settings)
    assert kept.height == 4, "an error is never trained on"


def test_a_cut_response_is_kept_by_policy_and_marked() -> None:
    responses = responses_table(PROMPTS[:1], "t", ["whole"])
    responses = responses.vstack(responses_table(PROMPTS[1:], "t", ["cut in the"], "length"))
    marks = {"whole": "stop", "cut in the": "length"}
    for policies, settings in (
        (Policies(length="keep"), DatasetSettings()),
        (Policies(length="penalise"), DatasetSettings()),
        (Policies(), DatasetSettings(keep_length=True)),
    ):
        kept, _ = build_dataset(PROMPTS, responses, policies, *TERMS[:2], settings)
        found = zip(kept["completion"].to_list(), kept["finish_reason"], strict=True)
        assert {completion[0]["content"]: reason for completion, reason in found} == marks
    kept, counts = build_dataset(PROMPTS, responses, Policies(), *TERMS)
    assert counts["dropped"] == {"length": 1}
    assert kept["finish_reason"].to_list() == ["stop"]
    old = kept.drop("finish_reason")
    assert fill_table(old, DATASET).equals(kept), "rows of earlier versions ended by themselves"


def test_the_earlier_name_of_the_policy_is_read_and_cannot_contradict_it() -> None:
    assert DatasetSettings().over(Policies(length="penalise")).length == "penalise"
    assert DatasetSettings(keep_length=False).over(Policies()).length == "drop"
    assert DatasetSettings(keep_length=True).over(Policies(length="keep")).length == "keep"
    with pytest.raises(ValueError, match=r"is true, but defects.length is drop; remove keep_length, its earlier name"):
        DatasetSettings(keep_length=True).over(Policies(length="drop"))


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(InputError, match=r"dropped: \{'length': 2\}"):
        build_dataset(PROMPTS, responses_table(PROMPTS, "t", ["first", "second"], "length"), Policies(), *TERMS)


def routes_table(prompts: pl.DataFrame, strengths: dict[str, float]) -> pl.DataFrame:
    """ROUTES that give every prompt to all of these teachers."""
    rows = [(identity, *item, None) for identity in prompts["prompt_id"] for item in strengths.items()]
    return pl.DataFrame(rows, schema=ROUTES, orient="row")


def by_words(responses: pl.DataFrame) -> pl.DataFrame:
    """Quality: the number of words; `unscored` has none."""
    scored = responses.filter(pl.col("response") != "unscored")
    quality = pl.col("response").str.count_matches(r"\w+").cast(pl.Float64)
    return scored.select("prompt_id", "teacher", quality=quality).select(QUALITY.names())


@pytest.mark.parametrize(
    ("of_a", "of_b", "kept"),
    [
        ("one two", "one", "a"),
        ("one", "one two", "b"),
        ("one", "two", "b"),  # a tie: b is stronger
        ("unscored", "one", "b"),
        ("one", "unscored", "a"),
        ("one two", "", "a"),  # dropped for a defect before it is compared
        ("I'm sorry, but I can't help with that.", "one", "b"),
    ],
)
def test_of_two_responses_the_better_is_kept(of_a: str, of_b: str, kept: str) -> None:
    responses = responses_table(PROMPTS, "a", [of_a] * 2).vstack(responses_table(PROMPTS, "b", [of_b] * 2))
    routes, policies = routes_table(PROMPTS, {"a": 1.0, "b": 2.0}), Policies(refusal="drop")
    dataset, counts = build_dataset(PROMPTS, responses, policies, *TERMS, routes, by_words)
    assert dataset["teacher"].to_list() == [kept] * 2
    assert counts["rows"] == 4
    assert counts["kept"] == sum(counts["dropped"].values()) == 2
    assert counts["dropped"].get("second", 0) == (2 if of_b and "sorry" not in of_a else 0)


def test_nothing_is_scored_where_every_prompt_has_one_response() -> None:
    def never(responses: pl.DataFrame) -> pl.DataFrame:
        raise AssertionError("nothing is to be scored")

    responses = responses_table(PROMPTS, "a", ["x", "y"])
    assert (
        build_dataset(PROMPTS, responses, Policies(), *TERMS, routes_table(PROMPTS, {"a": 1.0}), never)[0].height == 2
    )
    twice = responses.vstack(responses_table(PROMPTS, "b", ["x", "y"]))
    with pytest.raises(InputError, match="2 prompts have several responses; give their routes"):
        build_dataset(PROMPTS, twice, Policies(), *TERMS)

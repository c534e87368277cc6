import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from datasets import Dataset

from persyn.errors import InputError
from persyn.prompts import PromptSettings, anchor_prompts, build_prompts
from persyn.prompts.conversations import normalise, prompt_id
from persyn.schemas import PROMPTS, check_table
from persyn.verifiers import is_right_answer, share_of_checks
from tests.support.modules import load_module
from tests.support.tables import prompts_table, texts_of

RAW = Path(__file__).parent.parent / "data" / "raw"


def write_rows(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(folder: Path, **params: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
    defaults: dict[str, Any] = {"sources": [{"path": "p.jsonl"}], "decontaminate": [], "num_parallel": 1}
    return build_prompts(folder, PromptSettings.parse(defaults | params, "prompts"))


def test_every_row_is_kept_or_counted_with_its_reason(tmp_path: Path) -> None:
    shared = "one two three four five six seven"
    texts = ["Keep me.", "  Keep me. \r\n", "", "   ", "x" * 60, f"Now {shared}.", "The item.", "Another one."]
    write_rows(tmp_path, "p.jsonl", [{"prompt": text} for text in texts])
    write_rows(tmp_path, "e.jsonl", [{"question": "The item."}, {"question": f"What is {shared}?"}])
    table, counts = build(
        tmp_path, decontaminate=[{"path": "e.jsonl", "prompt": "question"}], ngram=7, max_characters=45
    )
    assert sorted(texts_of(table)) == ["Another one.", "Keep me."]
    assert counts["dropped"] == {"contaminated": 2, "duplicate": 1, "empty": 2, "too long": 1}
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
    check_table(table, PROMPTS, "prompts")


def test_identity_is_the_content_however_it_was_written(tmp_path: Path) -> None:
    assert prompt_id(normalise("Caf\u0065\u0301 \r\nx\n")) == prompt_id(normalise("Caf\u00e9\nx"))
    assert prompt_id("a") != prompt_id("b")


def test_the_parallel_set_is_exact_spread_over_domains_and_stable(tmp_path: Path) -> None:
    write_rows(tmp_path, "p.jsonl", [{"prompt": f"Say {i}."} for i in range(30)])
    write_rows(tmp_path, "m.jsonl", [{"prompt": f"{i} + {i}?", "answer": str(2 * i)} for i in range(10)])
    sources = [{"path": "p.jsonl"}, {"path": "m.jsonl", "domain": "math", "reference": "answer"}]
    table, counts = build(tmp_path, sources=sources, num_parallel=12)
    parallel = table.filter("parallel")
    assert parallel.height == 12 == counts["parallel"]
    assert dict(parallel["domain"].value_counts().rows()) == {"instruction": 9, "math": 3}
    again, _ = build(tmp_path, sources=list(reversed(sources)), num_parallel=12)
    assert set(again.filter("parallel")["prompt_id"]) == set(parallel["prompt_id"])
    other, _ = build(tmp_path, sources=sources, num_parallel=12, seed=1)
    assert set(other.filter("parallel")["prompt_id"]) != set(parallel["prompt_id"])


def test_parquet_and_limit(tmp_path: Path) -> None:
    prompts_table(["a", "b", "c"]).write_parquet(tmp_path / "p.parquet")
    table, _ = build(tmp_path, sources=[{"path": "p.parquet", "limit": 2}])
    assert sorted(texts_of(table)) == ["a", "b"]


def test_parts_of_one_file_are_sources_with_names_of_their_own(tmp_path: Path) -> None:
    rows = [{"prompt": f"{kind} {number}", "kind": kind} for kind in "abc" for number in (1, 2)]
    write_rows(tmp_path, "p.jsonl", rows)
    parts = [{"path": "p.jsonl", "where": f"{{{{ kind == '{kind}' }}}}"} for kind in "abc"]
    table, _ = build(tmp_path, sources=[parts[0] | {"label": "first"}, parts[1] | {"label": "second"}, parts[2]])
    assert {(text[0], source) for text, source in zip(texts_of(table), table["source"], strict=True)} == {
        ("a", "first"),
        ("b", "second"),
        ("c", "p.jsonl"),
    }


def test_a_hub_dataset_is_read_by_its_loader(tmp_path: Path) -> None:
    """A folder laid out like a dataset repository stands in for the hub: the same loader reads both."""
    (tmp_path / "repository").mkdir()
    rows = [{"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": "4"}]
    write_rows(tmp_path / "repository", "train.jsonl", rows)
    source = {"hub": str(tmp_path / "repository"), "revision": "0" * 40, "prompt": "question", "reference": "answer"}
    table, _ = build(tmp_path, sources=[source | {"domain": "math"}])
    assert set(zip(texts_of(table), table["reference"], strict=True)) == {("1 + 1?", "2"), ("2 + 2?", "4")}


def test_only_the_columns_that_are_named_are_read_from_a_hub_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repository").mkdir()
    rows = [{"q": "1 + 1?", "level": level, "more": "x"} for level in (1, 2)]
    write_rows(tmp_path / "repository", "train.jsonl", rows)
    read: list[list[str]] = []
    batches = Dataset.iter

    def seen(data: Dataset, *sizes: int) -> Any:
        read.append(data.column_names)
        return batches(data, *sizes)

    monkeypatch.setattr(Dataset, "iter", seen)
    source = {"hub": str(tmp_path / "repository"), "revision": "0" * 40, "where": "{{ level == 2 }}"}
    few = ("q", "{{ q }}", "{{ [q] | join }}{% for i in range(0) %}{% endfor %}", "{{ row['q'] }}")
    for prompt in (*few, "{{ row['q'] }}{{ row['none'] | default('') }}", "{{ (row.items() | list)[0][1] }}"):
        table, _ = build(tmp_path, sources=[source | {"prompt": prompt}])
        assert texts_of(table) == ["1 + 1?"]
    assert read == [["level", "q"]] * 4 + [["q", "level", "more"]] * 2


def test_all_prompts_are_parallel_where_no_number_is_given(tmp_path: Path) -> None:
    write_rows(tmp_path, "p.jsonl", [{"prompt": "one"}, {"prompt": "two"}])
    table, counts = build(tmp_path, num_parallel=None)
    assert table["parallel"].to_list() == [True, True]
    assert counts["parallel"] == 2


@pytest.mark.parametrize(
    ("lines", "kept", "dropped"),
    [
        (['{"prompt": "one"}'], ["one"], {}),
        (['{"prompt": ""}', '{"prompt": " \\n\\t "}', '{"prompt": null}', "", '{"prompt": "x"}'], ["x"], {"empty": 3}),
        ([json.dumps({"prompt": "word " * 200_000}), '{"prompt": "x"}'], ["x"], {"too long": 1}),
        (['{"prompt": "half a pair \\ud800"}', '{"prompt": "x"}'], ["x"], {"not text": 1}),
        (['{"prompt": "a\\u0000b"}', '{"prompt": "x"}'], ["x"], {"not text": 1}),
        (['{"prompt": "x"}', '{"prompt": "\\ufeffx"}', '{"prompt": "x \\r\\n"}'], ["x"], {"duplicate": 2}),
        (['{"prompt": "a\u2028b"}'], ["a\u2028b"], {}),
        (['\ufeff{"prompt": "first"}', '{"prompt": "second"}'], ["first", "second"], {}),
    ],
)
def test_odd_text_is_kept_as_it_is_or_dropped_with_its_reason(
    tmp_path: Path, lines: list[str], kept: list[str], dropped: dict[str, int]
) -> None:
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    table, counts = build(tmp_path)
    assert sorted(texts_of(table)) == kept
    assert counts["dropped"] == dropped
    assert counts["read"] == counts["kept"] + sum(dropped.values()) == len(list(filter(None, lines)))


def test_bytes_that_are_no_utf8_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "x"}\n{"prompt": "caf\xe9"}\n')
    assert build(tmp_path)[1]["dropped"] == {"not text": 1}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sources": []}, r"^prompts\.sources is \[\]; it must be .*not empty"),
        ({"sources": [{"path": "absent.jsonl"}]}, "does not exist"),
        ({"sources": [{"path": "p.csv"}]}, "cannot read .csv"),
        ({"sources": [{"path": "p.jsonl", "prompt": "question"}]}, "no column 'question'; it has prompt, answer"),
        ({"sources": [{"path": "p.jsonl", "reference": "answer"}]}, r"1 rows have no 'answer', first at rows \[1\]"),
        (
            {"sources": [{"path": "p.jsonl", "domain": "poetry"}]},
            r"^prompts\.sources\.0\.domain is 'poetry'; .* instruction, math, code",
        ),
        ({"sources": [{"hub": "owner/data"}]}, "needs its 40-hex commit"),
        ({"sources": [{"path": "broken.jsonl"}]}, r"broken.jsonl: row 1 is not json: .*, column 11"),
        ({"sources": [{"path": "mixed.jsonl"}]}, "row 1, column 'prompt' is int; it must hold text"),
        ({"sources": [{"path": "list.jsonl"}]}, "row 0 is list; it must be an object"),
        ({"sources": [{"path": "blank.jsonl"}]}, "no prompt is left of 0 read"),
        ({"sources": [{"path": "empty.jsonl"}]}, "is empty; it needs at least one row"),
        ({"sources": [{"path": "p.jsonl", "limit": 0}]}, r"^prompts\.sources\.0\.limit is 0; it must be .*1 or more"),
        (
            {"sources": [{"path": "p.jsonl", "lmit": 1}]},
            r"^prompts\.sources\.0\.lmit is not a parameter; did you mean limit\?",
        ),
        ({"num_parallel": 3}, "num_parallel is 3; it must be 1 to 2"),
        ({"max_characters": 0}, r"^prompts\.max_characters is 0; it must be .*1 or more"),
        ({"sources": [{"path": "long.jsonl"}], "max_characters": 1}, "no prompt is left of 1 read"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, params: dict[str, Any], message: str) -> None:
    write_rows(tmp_path, "p.jsonl", [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": " "}])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "p.csv").write_text("prompt\na\n")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (tmp_path / "mixed.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    (tmp_path / "list.jsonl").write_text('["a"]\n')
    (tmp_path / "long.jsonl").write_text('{"prompt": "ab"}')
    (tmp_path / "blank.jsonl").write_text("\n \n")
    with pytest.raises(InputError, match=message) as raised:
        build(tmp_path, **params)
    assert "\n" not in str(raised.value)


def test_the_raw_files_are_what_their_generator_writes(tmp_path: Path) -> None:
    generate = load_module(RAW / "generate.py")
    generate.FOLDER = tmp_path
    (tmp_path / "evaluation").mkdir()
    generate.main()
    names = [str(file.relative_to(RAW)) for file in RAW.rglob("*.jsonl")]
    assert len(names) == 6
    for name in names:
        assert (tmp_path / name).read_text() == (RAW / name).read_text(), name


def test_every_reference_is_accepted_by_its_own_checker() -> None:
    for row in pl.read_ndjson(RAW / "math.jsonl").iter_rows(named=True):
        assert is_right_answer(row["prompt"], f"So it is \\boxed{{{row['reference']}}}.", row["reference"]) == 1
    for row in pl.read_ndjson(RAW / "instruction.jsonl").iter_rows(named=True):
        assert 0 <= share_of_checks(row["prompt"], "Some words.", row["reference"]) <= 1


def test_anchors_are_the_same_prompts_for_all_and_grow() -> None:
    table = prompts_table([f"prompt {i}" for i in range(20)])
    few, more = anchor_prompts(table, 5), anchor_prompts(table.reverse(), 10)
    assert few["prompt_id"].to_list() == more["prompt_id"].to_list()[:5]
    with pytest.raises(InputError, match="anchors is 21; it must be 1 to 20"):
        anchor_prompts(table, 21)

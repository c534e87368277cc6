"""`persyn new`: a file of prompts becomes a profile that is read and planned without an edit."""

import json
import re
import shutil
from datetime import date
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from persyn.cli import app
from persyn.errors import InputError
from persyn.project.guesses import BOXED, PromptFile
from persyn.project.new import read_student, read_teachers
from persyn.project.params import Params, read_params
from persyn.prompts import build_prompts
from persyn.router.metrics import split_prompts
from persyn.verifiers import check_references
from tests.support.tiny import ROOT
from tests.test_profiles import LINKED

SUMS = [
    {"question": f"Ann has {n} pears and buys {n} more. How many are there?", "answer": f"{n}+{n}.\n#### {2 * n:,}"}
    for n in range(500, 512)
]
TURNS = [
    {"id": n, "turns": [f"Describe river number {n} to a friend of yours.", "Now say it as a poem."]} for n in range(9)
]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As much of the main project as a new profile links to."""
    folder = tmp_path / "main"
    shutil.copytree(ROOT / "data/raw/evaluation", folder / "data/raw/evaluation")
    (folder / ".dvc").mkdir()
    for name in ("Makefile", "dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("stages", "persyn", "tasks", "configs"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    return folder


def saved(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def run(*words: str, says: str = "") -> str:
    result = CliRunner().invoke(app, ["new", *words], input=says or None)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def made(root: Path, name: str) -> Params:
    """The parameters of a profile, whose prompts and references can be used."""
    params = read_params(root / "profiles" / name / "params.yaml")
    prompts, counts = build_prompts(root / "profiles" / name / "data/raw", params.prompts)
    check_references(prompts, params.quality.methods)
    assert not counts["dropped"]
    return params


def test_problems_with_worked_answers_become_a_profile_that_can_be_planned(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = root / "sums of mine.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in SUMS]
    file.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())  # as Windows saves it
    said = run("mine", "--prompts", str(file), "--parallel", "6")
    assert "guessed: --quality math_verify" in said
    assert said.index("cd profiles/mine") < said.index("persyn plan") < said.index("dvc repro")
    params = made(root, "mine")
    [source] = params.prompts.sources
    assert source.prompt == "{{ question }}" + BOXED
    assert source.reference == "{{ (answer.split('####') | last).strip() }}"
    assert (source.domain, params.prompts.num_parallel, list(params.quality.methods.values())) == (
        *("math", 6),
        ["math_verify"],
    )
    folder = root / "profiles/mine"
    for name in LINKED:
        assert (folder / name).is_symlink()
        assert (folder / name).resolve() == (root / name).resolve()
    assert "dir = ../../../.dvc/cache" in (folder / ".dvc/config").read_text()
    assert (folder / "data/raw" / file.name).read_bytes() == file.read_bytes()
    monkeypatch.chdir(folder)
    plan = CliRunner().invoke(app, ["plan", "--json"])
    assert plan.exit_code == 0, plan.output
    assert json.loads(plan.output)["prompts"]["parallel"] == 6


def test_two_turns_without_a_reference_are_checked_for_their_form(root: Path) -> None:
    file = saved(root / "turns.jsonl", TURNS)
    said = run("bench", "--prompts", str(file), "--yes", "--limit", "8", "--license", "CC0-1.0")
    assert "9 conversations (turns) of 2 turns" in said
    assert "nothing checks whether it is right" in said
    params = made(root, "bench")
    assert params.prompts.sources[0].prompt == "turns"
    assert params.quality.methods == {"instruction": "checkers"}
    assert params.prompts.num_parallel == 8


def test_every_question_has_an_option_and_every_guess_is_told(root: Path) -> None:
    file = saved(root / "ask.jsonl", TURNS)
    teachers = [
        "--teacher",
        "big/Model@https://example.org/v1,MY_KEY",
        "--teacher",
        "o/Small",
        "--judge",
        "j@http://localhost:1/v1",
    ]
    options = ["--domain", "instruction", "--prompt", "turns", "--license", "MIT", "--student", "o/student"]
    numbers = ["--max-tokens", "300", "--limit", "0", "--parallel", "4", "--task", "gsm8k_5shot", "--items", "0"]
    said = run("full", "--prompts", str(file), *teachers, *options, *numbers, "--link")
    assert "guessed" not in said
    assert "persyn pin" in said
    assert "items of gsm8k_5shot" in said
    params = made(root, "full")
    assert list(params.teachers) == ["model", "small"]
    assert params.speed_of("model").api_key_env == "MY_KEY"
    assert params.speed_of("judge").base_url == "http://localhost:1/v1"
    assert params.defects.length == "drop"
    assert (params.prompts.sources[0].limit, params.evaluation.limit) == (None, None)
    assert (root / "profiles/full/data/raw/ask.jsonl").is_symlink()


def test_on_a_terminal_it_asks_and_asks_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("persyn.cli.new"), "_is_terminal", lambda: True)
    file = saved(root / "turns.jsonl", TURNS)
    answers = [str(file), "", "judge", "", "x", "j@https://example.org/v1", "MIT", "nobody", "smollm2-terse o/m"]
    said = run("asked", says="\n".join([*answers, *[""] * 6, "5", "", ""]))
    assert "--judge is 'x'" in said
    assert "--teacher is 'nobody'" in said
    params = made(root, "asked")
    assert list(params.teachers) == ["smollm2-terse", "m"]
    assert params.quality.methods == {"instruction": "judge"}


def test_all_mistakes_are_told_at_once_and_nothing_is_written(root: Path) -> None:
    with pytest.raises(InputError) as raised:
        run("Mine!", "--prompts", "none.csv", "--teacher", "x", "--student", "gema", "--quality", "judge", "--yes")
    assert [word in str(raised.value) for word in ("'Mine!'", "none.csv", "'x'", "'gema'", "--judge")] == [True] * 5
    with pytest.raises(InputError, match="--prompts is missing"):
        run("mine", "--yes")
    file = saved(root / "sums.jsonl", SUMS)
    with pytest.raises(InputError) as raised:
        run("mine", "--prompts", str(file), "--prompt", "ask", "--reference", "{{ nothing.at.all }}", "--student", "x")
    assert [word in str(raised.value) for word in ("'ask'", "nothing.at.all", "'x'")] == [True] * 3
    with pytest.raises(InputError, match="the answer must not be in the prompt"):
        run("mine", "--prompts", str(file), "--prompt", "{{ question }} {{ answer }}")
    with pytest.raises(InputError, match=r"evaluation.tasks: .'persyn_mat'.*; did you mean persyn_math"):
        run("mine", "--prompts", str(file), "--task", "persyn_mat")
    wrong = saved(root / "wrong.jsonl", [*SUMS[:3], {"question": "How many?", "answer": "1,5"}])
    with pytest.raises(InputError) as raised:
        run("mine", "--prompts", str(wrong), *("--reference", "answer", "--quality", "math_verify", "--parallel", "99"))
    assert [word in str(raised.value) for word in ("references cannot be used", "--parallel is 99; there are 4")] == (
        [True] * 2
    )
    assert not (root / "profiles").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--domain", "instruction"],
        ["--reference", "question", "--prompt", "answer"],
        ["--judge", "j@http://localhost:1/v1"],
    ],
)
def test_a_reference_that_nothing_reads_is_refused(root: Path, options: list[str]) -> None:
    file = saved(root / "sums.jsonl", SUMS)
    reference = "{{ answer.split('####') | last }}"
    with pytest.raises(InputError, match=r"--reference is .*which compares with nothing; name the --quality"):
        run("mine", "--prompts", str(file), "--reference", reference, *options)


@pytest.mark.parametrize(
    ("kept", "guess", "why"), [(5, 5, "all 5"), (12, 8, "of 12"), (90, 30, "a third"), (5000, 400, "of 5,000")]
)
def test_the_guess_of_parallel_says_how_it_was_made(kept: int, guess: int, why: str) -> None:
    found, said = import_module("persyn.cli.new")._parallel(kept)
    assert (found, said.startswith(why)) == (guess, True)


def test_what_exists_is_not_overwritten_and_half_a_profile_is_removed(root: Path) -> None:
    file = saved(root / "sums.jsonl", SUMS)
    (root / "profiles/mine").mkdir(parents=True)
    with pytest.raises(InputError, match="exists and is not overwritten"):
        run("mine", "--prompts", str(file))
    assert not list((root / "profiles/mine").iterdir())
    (root / "Makefile").write_text("profile:\n\tfalse\n")
    with pytest.raises(InputError, match="failed"):
        run("other", "--prompts", str(file))
    assert not (root / "profiles/other").exists()


IFEVAL = {"prompt": "Hi", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]}
VERL = {"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"style": "rule", "ground_truth": "2"}}
CHAT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
BOX = {"problem": "Half of 3? Use \\boxed{}.", "solution": "It is \\boxed{\\frac{3}{2}}.", "level": 5}
SEED = {"instruction": "Translate.", "instances": [{"input": "chat", "output": "cat"}]}
NESTED = {"data": {"question": "2+2?", "answer": "4"}}
CHECKED = {"prompt": "Hi", "checks": [{"instruction_id": "punctuation:no_comma", "kwargs": {}}]}


@pytest.mark.parametrize(
    ("row", "prompt", "method", "reference"),
    [
        (IFEVAL, "prompt", "checkers", "instruction_id_list"),
        (CHECKED, "prompt", "checkers", "checks | tojson"),
        (VERL, "prompt", "math_verify", "row['reward_model']['ground_truth']"),
        (BOX, "problem", "math_verify", "solution"),
        ({"query": "2+2?", "answer": 4, "id": 7}, "query", "math_verify", "{{ answer }}"),
        ({"a b": "Capital of France?", "answer": "Paris"}, "a b", None, None),
        ({"Question": "2+2?", "Answer": "4"}, "Question", "math_verify", "Answer"),
        (CHAT, "conversations", None, None),
        (SEED, "instances[0].input", None, None),
        ({"instruction": "Sing.", "input": "", "output": "La."}, "input is defined", None, None),
        (NESTED, "row['data']['question']", "math_verify", "row['data']['answer']"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_columns_are_found(
    tmp_path: Path, row: dict[str, Any], prompt: str, method: str | None, reference: str | None, form: str
) -> None:
    if form == "parquet":
        if "kwargs" in str(row.get("checks")):
            pytest.skip("parquet has no empty objects")
        pl.DataFrame([row, row]).write_parquet(tmp_path / "p.parquet")
    else:
        saved(tmp_path / "p.jsonl", [row, row])
    file = PromptFile(tmp_path / f"p.{form}")
    guess, checks = file.prompt(), file.checks()
    assert guess
    assert prompt in guess.value
    assert (checks.method if checks else None) == method
    if reference:
        assert checks
        assert reference in str(checks.reference)


def test_a_row_without_an_answer_and_words_are_no_answers(tmp_path: Path) -> None:
    for bad in ("", None, "see above", "1 or 2?"):
        rows: list[dict[str, Any]] = [{"question": "1+1?", "answer": "2"}, {"question": "1+2?", "answer": bad}]
        assert PromptFile(saved(tmp_path / "p.jsonl", rows)).checks() is None, bad


@pytest.mark.parametrize("row", [{"row": "Why?"}, {"row_idx": 0, "row": {"question": "1+1?"}}, {"a": "Why?", "row": 7}])
def test_a_column_called_row_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"has a column row.*rename"):
        PromptFile(saved(tmp_path / "p.jsonl", [row]))


@pytest.mark.parametrize("column", ["self", "in", "none"])
def test_a_column_may_have_a_name_that_templates_use(root: Path, column: str) -> None:
    file = saved(root / "p.jsonl", [{column: row["question"], "answer": row["answer"]} for row in SUMS])
    run("mine", "--prompts", str(file))
    assert made(root, "mine").prompts.sources[0].prompt == f"{{{{ row['{column}'] }}}}" + BOXED


def test_decimals_and_dates_of_parquet_are_read(root: Path) -> None:
    file = root / "p.parquet"
    rows = [{"messages": [{"role": "user", "content": f"{n}+{n}?", "at": date(2024, 1, n)}]} for n in range(1, 10)]
    answers = pl.Series("answer", [Decimal(2 * n) for n in range(1, 10)])
    pl.DataFrame(rows).with_columns(answers).write_parquet(file)
    assert "answer (number)" in run("mine", "--prompts", str(file))
    assert made(root, "mine").prompts.sources[0].reference == "{{ answer }}"
    run("form", "--prompts", str(file), "--quality", "form")
    made(root, "form")


def test_nothing_is_known_to_ask(root: Path) -> None:
    file = saved(root / "p.jsonl", [{"a": "x", "b": "y"}])
    with pytest.raises(InputError, match="name one by --prompt: a, b"):
        run("mine", "--prompts", str(file))


def test_an_id_is_no_prompt(tmp_path: Path) -> None:
    rows = [{"custom_id": f"request-{n}", "body": {"messages": TURNS}} for n in range(3)]
    assert PromptFile(saved(tmp_path / "p.jsonl", rows)).prompt() is None
    assert PromptFile(saved(tmp_path / "p.jsonl", [{"Frage": "请描述一条河流。"}])).prompt()


def test_a_prompt_that_is_not_there_or_cannot_be_used_is_told(tmp_path: Path) -> None:
    tool = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "x"}]}]
    file = PromptFile(saved(tmp_path / "p.jsonl", tool))
    with pytest.raises(InputError, match="there is no column 'ask'"):
        file.shapes("ask")
    assert file.shapes("messages") == "1 conversations (messages) that cannot be used: tool turn"


def test_too_few_prompts_for_a_router_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"has 2 different prompts .*needs 3 or more"):
        run("mine", "--prompts", str(saved(root / "p.jsonl", TURNS[:2] * 5)))
    few = str(saved(root / "few.jsonl", TURNS[:3]))
    with pytest.raises(InputError, match=r"--parallel is 2; .* give 3 to 3"):
        run("mine", "--prompts", few, "--parallel", "2")
    run("mine", "--prompts", few)
    params = made(root, "mine")
    prompts, _ = build_prompts(root / "profiles/mine/data/raw", params.prompts)
    split_prompts(prompts, params.router.holdout)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.csv", "question,answer\n", "has commands that convert"),
        ("p.json", '[{"question": "Why?"}]', "has commands that convert"),
        ("p.JSONL", '{"question": "Why?"}', "by this ending: rename it"),
        ("p.ndjson", '{"question": "Why?"}', "by this ending: rename it"),
        ("p.jsonl", '[{"question": "Why?"}]', "row 0 is list; .* one JSON object a line, .* has commands"),
        ("p.jsonl", "Why?", "row 0 is not json: .* one JSON object a line, .* has commands"),
        ("p.jsonl", "{}", "whose rows are empty objects; each needs a key"),
        ("none.jsonl/p", "", "none.jsonl, which is a folder; name a file in it"),
    ],
)
def test_a_file_of_another_form_is_refused_with_what_to_do(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        PromptFile(tmp_path / name.removesuffix("/p"))


@pytest.mark.parametrize(
    ("rows", "says", "options"),
    [
        ([*SUMS, {"question": "And p?", "answer": "p - q"}], r"in 12 of 13 rows, not in row 12 .*'p - q'.*'answer", ""),
        ([{"question": "1+1?", "answer": n} for n in (2, 2, "p - q")], r"--reference '{{ answer }}'", ""),
        ([{"question": "1+1?", "choices": ["2", "3"], "answer": 0}], "column choices makes it multiple choice", ""),
        ([{"prompt": f"Write f{n}.", "tests": f"assert f{n}()"} for n in range(3)], "'tests' runs them", "tests"),
        ([{"text": f"Write f{n}.", "test_list": [f"assert f{n}()"]} for n in range(3)], "runs them",
         r"{{ test_list | join('\n') }}"),
        ([{"prompt": f"def f{n}(", "test": "def check(f):\n    assert f()", "entry_point": f"f{n}"} for n in range(3)],
         "runs them", "{{ test }}\ncheck({{ entry_point }})"),
    ],
)  # fmt: skip
def test_why_no_check_was_guessed(root: Path, rows: list[dict[str, Any]], says: str, options: str) -> None:
    path = saved(root / "p.jsonl", rows)
    file = PromptFile(path)
    assert file.checks() is None
    assert re.search(says, file.unchecked()), file.unchecked()
    if options:
        assert repr(options) in file.unchecked()
        run("mine", "--prompts", str(path), "--quality", "unit_tests", "--reference", options)
        params = made(root, "mine")
        assert (params.prompts.sources[0].domain, params.evaluation.tasks) == ("code", ["persyn_code"])


def test_the_file_is_asked_for_again_and_may_lie_at_home(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("persyn.cli.new"), "_is_terminal", lambda: True)
    monkeypatch.setenv("HOME", str(root))
    saved(root / "my turns.jsonl", TURNS)
    said = run("asked", says="\n".join(["none.jsonl", "'~/my turns.jsonl'", *[""] * 12]))
    assert "none.jsonl, which does not exist" in said
    made(root, "asked")
    run("named", "--yes", "--prompts=~/my turns.jsonl")


def test_what_the_prompt_leaves_out_is_told(root: Path) -> None:
    rows = [{"question": f"Where is river {n}?", "context": f"River {n} is in Spain.", "input": ""} for n in range(3)]
    file = str(saved(root / "p.jsonl", rows))
    assert "note: the prompt leaves out context;" in run("mine", "--prompts", file)
    assert "note" not in run("both", "--prompts", file, "--prompt", "{{ question }}\n{{ context }}")


def test_rows_that_are_not_utf8_are_told(root: Path) -> None:
    texts = [f"Describe café {n} to a friend who likes 😀 it." for n in range(9)]
    rows = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    file = root / "p.jsonl"
    file.write_bytes(
        b"\n".join(row.encode() if n > 3 else row.encode("cp1252", "ignore") for n, row in enumerate(rows))
    )
    said = run("mine", "--prompts", str(file))
    assert "note: 4 rows are not in UTF-8" in said
    assert "5 kept; dropped: 4 not text" in said


def test_an_input_that_is_a_number_stands_in_the_prompt(root: Path) -> None:
    rows = [{"instruction": "Is this number prime?", "input": n, "output": "x"} for n in range(9)]
    run("mine", "--prompts", str(saved(root / "p.jsonl", rows)))
    prompts, _ = build_prompts(root / "profiles/mine/data/raw", made(root, "mine").prompts)
    assert "Is this number prime?\n\n0" in prompts["prompt"].explode().struct.field("content").to_list()


def test_names_of_teachers_do_not_clash() -> None:
    teachers, servers = read_teachers(["a/Big.1", "b/Big.1", "judge@https://example.org/v1"])
    assert list(teachers) == ["big-1", "big-1-2", "judge-2"]
    assert servers == {"judge-2": {"base_url": "https://example.org/v1"}}
    assert read_student("gemma3-270m")["model"] == "packaged:gemma3-270m"

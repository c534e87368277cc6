"""What a written answer means: our own table of cases, and which references are refused when prompts are built."""

from pathlib import Path

import pytest

from persyn.errors import InputError
from persyn.verifiers import check_references, is_right_answer
from persyn.verifiers.answers import fault
from tests.support import agreement
from tests.support.answers import CASES
from tests.support.tables import prompts_table


@pytest.mark.parametrize("kind", CASES)
def test_every_kind_of_writing_has_its_meaning(kind: str) -> None:
    wrong = [case for case in CASES[kind] if is_right_answer("p", case[1], case[0]) != case[2]]
    assert wrong == []


ONE_MEANING = ["7", "-1 1/2", "1 234", "1,234", "50%", r"\$5.50", "2700 grams", r"5 \text{ m}", "90^\\circ", "C"]
ONE_MEANING += [
    "yes",
    r"\text{Evelyn}",
    r"\text{The sum is even}",
    r"\frac{\pi}{2}",
    "x^2 + 1",
    "x = 5",
    "1, 2",
    "5 and 7",
]
ONE_MEANING += [
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
    "[0, 1)",
    "(1, 2)",
    r"\infty",
    "6*7=42\n#### 42",
    "$42$",
    "3:4",
]
ONE_MEANING += [r"So it is $\boxed{42}$.", r"\sin x", "sqrt(2)", r"x \in [1, 2]", "2x", "1.5e3", "0,5", "243_6"]
ONE_MEANING += ["So 6 * 7 = 42. The answer is 42.", "Answer: C", "(C)"]


@pytest.mark.parametrize("reference", ONE_MEANING)
def test_a_reference_with_one_meaning_can_be_used(reference: str) -> None:
    assert fault(reference) == ""


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("", "is empty"),
        (r"\boxed{}", "is empty"),
        (r"\frac{1}{", "is not a mathematical answer"),
        ("see the solution", "is not a mathematical answer"),
        ("???", "is not a mathematical answer"),
        ("N/A", "is not a mathematical answer"),
        ("None", "is not a mathematical answer"),
        ("1/0", "is not a mathematical answer"),
        ("1.2.3", "is not a mathematical answer"),
        ("3 hours 20 minutes", "is not a mathematical answer"),
        ("1,22", "can be read in two ways"),
        ("1,2", "can be read in two ways"),
        ("5m", "can be read in two ways"),
        ("(C) 42", "can be read in two ways"),
        ("1 and 1/2", "can be read in two ways"),
        ("1 2", "can be read in two ways"),
    ],
)
def test_a_reference_without_one_meaning_says_why(reference: str, why: str) -> None:
    assert fault(reference).startswith(why)


def test_bad_references_are_counted_and_the_first_ones_named() -> None:
    references = ["7", "see above", "1,22", "N/A", "1/0", None]
    prompts = prompts_table([f"p{number}" for number in range(6)], "math", references)
    with pytest.raises(InputError) as error:
        check_references(prompts, {"math": "math_verify"})
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("4 references cannot be used by quality.methods of math; first: reference ")
    assert str(error.value).count("reference '") == 3
    assert "; and 1 parallel prompts of math have no reference, which math_verify needs; first: prompt " in str(
        error.value
    )
    check_references(prompts, {"math": "judge"})
    check_references(prompts, {})


@pytest.mark.parametrize(
    "response", ["\\boxed{" + "9" * 5000 + "}", "A) " * 5000, "\\boxed{" + "A) " * 999 + "}", "{" * 9999]
)
def test_a_strange_response_is_only_wrong(response: str) -> None:
    assert is_right_answer("p", response, "7") == 0.0


def test_agreement_reads_another_projects_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_a.py").write_text(
        "import pytest\n"
        '@pytest.mark.parametrize("gold, pred, expected, strict", [("$f(x)$", "$f(y)$", 1, False),\n'
        '    ("1", "1", 1, True)])\n'
        "def test_it(): ...\n"
        '@pytest.mark.parametrize("gold, pred", [(f"{1}", "1")])\n'
        "def test_computed(): ...\n"
    )
    agreement.main(str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["all", "2", "1", "2"]
    total = sum(map(len, CASES.values()))
    assert [f"{total}", f"{total}", f"{total}"] in [line.split()[1:] for line in lines if line.startswith("all")]

"""Parameters: every shipped section binds to its code; a misspelling is one clear line."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml, loads_yaml
from ruamel.yaml import YAML

import stages
from persyn.cost import Prices
from persyn.dataset import build_dataset
from persyn.defects import Policies
from persyn.errors import InputError, check_keys
from persyn.evaluation import evaluate_student
from persyn.generation import Sampling, Teacher
from persyn.generation.budget import Budget
from persyn.generation.terms import Licenses
from persyn.learnability import Method, score_learnability
from persyn.models import Student
from persyn.pairs import build_pairs
from persyn.prompts import Source, build_prompts
from persyn.quality import score_quality
from persyn.responses import generate_responses
from persyn.rewards import build_rewards
from persyn.router.settings import Settings
from persyn.routes import RULES
from persyn.student import train_student
from stages import read_params, read_value, run

SECTIONS: dict[str, Callable[..., Any]] = {
    "prompts": build_prompts,
    "quality": score_quality,
    "student": Student,
    "learnability": Method,
    "licenses": Licenses,
    "responses": generate_responses,
    "defects": Policies,
    "rewards": build_rewards,
    "pairs": build_pairs,
    "router": Settings,
    "dataset": build_dataset,
    "sft": train_student,
    "evaluation": evaluate_student,
    "budget": Budget,
}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stages, "PARAMS", tmp_path / "params.yaml")
    return tmp_path / "params.yaml"


ROOT = Path(__file__).parent.parent
PROFILES = [
    "params.yaml",
    "profiles/micro.yaml",
    *(str(p.relative_to(ROOT)) for p in ROOT.glob("profiles/*/params.yaml")),
]


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_shipped_section_binds_to_its_code(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "PARAMS", ROOT / profile)
    for section, accepts in SECTIONS.items():
        assert read_params(section, accepts)
    Prices(**read_params("prices", Prices)).check(read_params("teachers"))
    Licenses(**read_params("licenses", Licenses)).check(read_params("teachers"))
    for strategy in read_params("strategies").values():
        check_keys("strategy", {key: strategy[key] for key in strategy if key != "rule"}, RULES[strategy["rule"]])
    assert read_params("speed.learnability", score_learnability) is not None
    assert read_value("speed.student.device_batch_size")
    assert read_value("speed.evaluation.batch_size")
    for name in read_params("teachers"):
        Sampling(**Teacher(**read_params(f"teachers.{name}", Teacher)).sampling)
    for source in read_params("prompts")["sources"] + read_params("prompts")["decontaminate"]:
        Source(**source)


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_shipped_parameter_survives_dvc_lock(profile: str) -> None:
    """DVC's YAML writer may break a long text behind a backslash, which gives another text: `dvc status` is then never
    clean. Rephrase the text, or move the backslash.
    """
    sections = YAML(typ="safe", pure=True).load(ROOT / profile)
    lock = {"stages": {"prompts": {"params": {"params.yaml": sections}}}}
    read = loads_yaml(dumps_yaml(lock), typ="safe")
    assert read["stages"]["prompts"]["params"]["params.yaml"] == sections


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pairs: {min_margn: 0}", r"pairs.min_margn is not a parameter; did you mean min_margin\?"),
        ("pair: {}", r"'pair' is no section that is read; did you mean pairs\?"),
        ("pairs: {min_margin: 0}\nbudgett: {max_tokens: 5}", r"'budgett' is no section .*; did you mean budget\?"),
        ("defects: {}", r"pairs is missing in .*; known: defects"),
        ("pairs: 3", "pairs must be a mapping in .*, got 3"),
        ("pairs: {}\npairs: {}", "duplicate key"),
        ("pairs: {", "cannot read"),
        ("pairs: !!python/object/apply:os.system [echo]", "cannot read"),
    ],
)
def test_a_mistake_is_one_clear_line(params: Path, text: str, message: str) -> None:
    params.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_params("pairs", build_pairs)
    assert "\n" not in str(raised.value)


def test_a_missing_parameter_is_named(params: Path) -> None:
    params.write_text("rewards: {}\nteachers: {t: {model: m}}")
    with pytest.raises(InputError, match=r"rewards.alpha is missing"):
        read_params("rewards", build_rewards)
    with pytest.raises(InputError, match=r"teachers.t.sampling is missing"):
        read_params("teachers.t", Teacher)
    with pytest.raises(InputError, match=r"teachers.u is missing in .*; known: t"):
        read_params("teachers.u", Teacher)


def test_aliases_without_end_are_no_trouble(params: Path) -> None:
    """A billion laughs: nine levels of nine references each."""
    lines = ["a0: &a0 [lol]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    params.write_text("\n".join([*lines, "pairs: {min_margin: 0.0}"]))
    assert read_params("pairs", build_pairs) == {"min_margin": 0.0}


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghijklmnop1234",
        "hf_abcdefghijklmnopqrstuvwx",
        "ghp_abcdefghijklmnopqrstuvwx",
        "AKIAABCDEFGHIJKLMNOP",
        "Bearer abcdefghijklmnop1234",
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
@pytest.mark.parametrize(
    "text", ["speed: {{openai: {{api_key: '{}'}}}}", "teachers: {{t: {{system: 'use {}'}}}}", "'{}': 1"]
)
def test_a_key_in_params_is_an_error_that_does_not_repeat_it(params: Path, secret: str, text: str) -> None:
    params.write_text(text.format(secret) + "\npairs: {}")
    with pytest.raises(InputError, match=r"looks like a key .*name the environment variable") as raised:
        read_params("pairs")
    assert secret not in str(raised.value)


def test_what_is_no_key_is_none(params: Path) -> None:
    params.write_text("pairs: {note: 'ask-the-teacher-again-and-again', model: hf_org/model, env: OPENAI_API_KEY}")
    assert read_params("pairs")["env"] == "OPENAI_API_KEY"


@pytest.mark.parametrize(
    "name",
    ["../../etc/x", "a/b", "con", "qwen2.5-7b", "x" * 65, "\u0430", "-rf", "A", "a b", "$(id)", ""],
)
@pytest.mark.parametrize("section", ["teachers", "strategies"])
def test_a_name_that_cannot_be_a_file_is_refused(params: Path, section: str, name: str) -> None:
    with params.open("w") as file:
        YAML().dump({section: {name: {}}, "pairs": {}}, file)
    with pytest.raises(InputError, match=f"{section}: .* cannot name a file"):
        read_params("pairs")


def test_data_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise InputError("prompt \x1b[2J\x1b]0;owned\x07\r\nforged \u202eline \x9b31m")

    monkeypatch.setattr("sys.argv", ["stage"])
    with pytest.raises(SystemExit) as raised:
        run(main)
    assert str(raised.value) == "error: prompt \\x1b[2J\\x1b]0;owned\\x07\\r\\nforged \\u202eline \\x9b31m"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_is_told_to_stop_says_how_to_go_on(number: signal.Signals) -> None:
    program = "import time; from stages import run; run(lambda: (print('started', flush=True), time.sleep(60)))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as stage:
        assert stage.stdout
        stage.stdout.readline()
        stage.send_signal(number)
        _, message = stage.communicate(timeout=10)
    assert stage.returncode == 128 + number
    assert message == f"stopped by {number.name}; what is done is kept, the same command goes on\n"


def test_run_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise InputError("got this, need that")

    monkeypatch.setattr("sys.argv", ["stage"])
    with pytest.raises(SystemExit, match="error: got this, need that"):
        run(main)
    monkeypatch.setenv("PERSYN_TRACEBACK", "1")
    with pytest.raises(InputError):
        run(main)

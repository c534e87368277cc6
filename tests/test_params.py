"""Parameters: every shipped params.yaml is read; every mistake is one clear line, and all of them are said at once."""

import json
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml, loads_yaml
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML
from typer.testing import CliRunner

import persyn.project.params
from persyn.cli import app, main
from persyn.errors import InputError
from persyn.files import write_json
from persyn.generation import Teacher
from persyn.pairs import PairSettings
from persyn.project.params import check_params, read_params
from persyn.project.reference import build_reference, reference_page, schema_text, undocumented
from persyn.quality import QualitySettings
from persyn.rewards import RewardSettings
from persyn.routes import Persyn
from persyn.settings import TYPES
from stages import run
from tests.support.tiny import ROOT
from tests.support.wrong_params import FAULTS, FILES, LEGAL, try_wrong

SHIPPED = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
NAMES = [str(file.relative_to(ROOT)) for file in FILES]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A params.yaml to be written, which stages and commands read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(persyn.project.params, "PARAMS", tmp_path / "params.yaml")
    return tmp_path / "params.yaml"


def shipped(**sections: Any) -> dict[str, Any]:
    """The shipped parameters with other values: `rewards__alpha=2`, or a whole section."""
    found = json.loads(json.dumps(SHIPPED))
    for place, value in sections.items():
        *above, last = place.split("__")
        node = found
        for part in above:
            node = node[part]
        node[last] = value
    return found


def mistakes(data: Any) -> list[str]:
    """What check_params says of `data`, a line for each mistake, without the name of the file."""
    with pytest.raises(InputError) as raised:
        check_params(data, "p.yaml")
    assert not any("\n" in line for line in raised.value.args)
    return [line.removeprefix("p.yaml: ") for line in raised.value.args]


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_file_is_read(name: str) -> None:
    params = read_params(ROOT / name)
    for teacher in params.teachers:
        assert params.speed_of(teacher)
    assert params.speed.student.device_batch_size
    assert params.strategies
    data = YAML(typ="safe", pure=True).load(ROOT / name)
    assert list(params.teachers) == list(data["teachers"]), "in the order of the file"
    assert params.strategies["persyn"] == Persyn(**data["strategies"]["persyn"])


def test_car_needs_the_students_loss_and_one_length_policy_holds() -> None:
    data = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    data["strategies"]["car"] = {"rule": "car"}
    check_params(data)
    data["learnability"] = {"method": "local"}
    data["dataset"] = {"keep_length": False}
    with pytest.raises(InputError) as caught:
        check_params(data)
    assert "strategies.car.rule is car, which needs the student's loss" in str(caught.value)
    assert "dataset.keep_length is false, but defects.length is keep; remove keep_length" in str(caught.value)


def test_scas_is_told_what_is_right_where_1_does_not_say_so() -> None:
    data = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    data["strategies"]["scas"] = {"rule": "scas"}
    check_params(data)
    data["quality"] |= {"methods": {"instruction": "judge", "math": "math_verify"}, "judge": {"model": "j"}}
    with pytest.raises(InputError, match=r"strategies\.scas\.require names no least quality for instruction; "):
        check_params(data)
    data["strategies"]["scas"]["require"] = {"instruction": 7.0, "code": 1.0}
    with pytest.raises(InputError, match=r"strategies\.scas\.require names code, for which .* has no method"):
        check_params(data)
    del data["strategies"]["scas"]["require"]["code"]
    check_params(data)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_file_is_legal_by_the_schema_that_it_names(name: str) -> None:
    first = (ROOT / name).read_text().partition("\n")[0]
    path = first.removeprefix("# yaml-language-server: $schema=")
    assert (ROOT / name).parent.joinpath(path).resolve() == ROOT / "params.schema.json"
    schema = Draft202012Validator(json.loads((ROOT / "params.schema.json").read_text()))
    assert list(schema.iter_errors(YAML(typ="safe", pure=True).load(ROOT / name))) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_parameter_survives_dvc_lock(name: str) -> None:
    """DVC's YAML writer may break a long text behind a backslash, which gives another text: `dvc status` is then never
    clean. Rephrase the text, or move the backslash.
    """
    sections = YAML(typ="safe", pure=True).load(ROOT / name)
    lock = {"stages": {"prompts": {"params": {"params.yaml": sections}}}}
    read = loads_yaml(dumps_yaml(lock), typ="safe")
    assert read["stages"]["prompts"]["params"]["params.yaml"] == sections


def test_no_wrong_value_is_taken_or_ends_in_a_traceback() -> None:
    counts, faults = try_wrong(ROOT / "params.yaml")
    assert not faults
    assert counts["replaced"] == counts["refused"] + counts["accepted"]
    assert counts["refused"] > 500
    assert {f"accepted: {reason}" for reason in LEGAL} & counts.keys()
    assert not any(counts[fault] for fault in FAULTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": {"min_margn": 0}}, "pairs.min_margn is not a parameter; did you mean min_margin?"),
        ({"pair": {}}, "pair is no section that is read; did you mean pairs?"),
        ({"budgett": {"max_tokens": 5}}, "budgett is no section that is read; did you mean budget?"),
        ({"pairs": 3}, "pairs is 3; it must be a mapping (keys and their values)"),
        ({"rewards__alpha": 2}, "rewards.alpha is 2; it must be a number from 0 to 1"),
        ({"rewards__alpha": "0.4"}, "rewards.alpha is '0.4'; it must be a number from 0 to 1"),
        ({"rewards__alpha": float("nan")}, "rewards.alpha is nan; it must be a number from 0 to 1"),
        (
            {"router__seed": 2**32},
            "router.seed is 4294967296; it must be a whole number of at least 0 and",
        ),
        ({"router__holdout": 1}, "router.holdout is 1; it must be a number above 0 and below 1"),
        ({"router__batch_size": True}, "router.batch_size is true; it must be a whole number, 1 or more"),
        ({"router__lora": 3}, "router.lora is 3; it must be a mapping (keys and their values)"),
        ({"router__lora": {"r": 0}}, "router.lora.r is 0; it must be a whole number, 1 or more"),
        ({"sft__packing": "yes"}, "sft.packing is 'yes'; it must be true or false"),
        ({"budget__max_tokens": -1}, "budget.max_tokens is -1; it must be a number, 0 or more, or null"),
        ({"budget__max_tokens": 0.5}, "budget.max_tokens is 0.5; it must be a whole number of tokens, or null"),
        ({"defects__empty": "dropp"}, "defects.empty is 'dropp'; it must be one of keep, penalise, drop"),
        ({"student__revision": "main"}, "student.revision is 'main'; it must be a commit of 40 hex digits, or null"),
        ({"evaluation__tasks": []}, "evaluation.tasks is []; it must be a list (of each: text) that is not empty"),
        ({"evaluation__tasks": [3]}, "evaluation.tasks.0 is 3; it must be"),
        ({"quality__methods": {"maths": "judge"}}, "quality.methods"),
        ({"quality__methods": {"math": "math_verify"}}, "quality.methods has no method for instruction, the domain of"),
        ({"quality__methods__math": "judge"}, "quality.judge is null, but methods names it; it must be a mapping"),
        ({"teachers": {}}, "teachers is {}; it must be a mapping by name"),
        (
            {"teachers__smollm2-terse__backend": "transformer"},
            "teachers.smollm2-terse.backend is 'transformer'; it",
        ),
        (
            {"prompts__sources": [{"path": "a", "hub": "b/c"}]},
            "prompts.sources.0.hub is 'b/c', and path is 'a'; it",
        ),
        ({"prompts__sources": [{}]}, "prompts.sources.0.path is null, and hub is null; it needs one of them"),
        (
            {"strategies__strong": {"rule": "stron"}},
            "strategies.strong.rule is 'stron'; it must be one of best_quality,",
        ),
        ({"strategies__strong": {}}, "strategies.strong.rule is missing; it must be one of best_quality, best_single,"),
        ({"strategies__strong": 3}, "strategies.strong"),
        (
            {"strategies__strong": {"rule": "strong", "techer": "x"}},
            "strategies.strong.techer is not a parameter; did you mean teacher?",
        ),
        (
            {"strategies__persyn__max_tokens": "x"},
            "strategies.persyn.max_tokens is 'x'; it must be a number, 0 or more",
        ),
        (
            {"strategies__strong": {"rule": "strong", "teacher": "gemma"}},
            "strategies.strong.teacher names 'gemma', which is no teacher",
        ),
        ({"strategies__persyn__exclude": ["x"]}, "strategies.persyn.exclude.0 names 'x', which is no teacher"),
        ({"licenses__allow_forbidden": ["x"]}, "licenses.allow_forbidden.0 names 'x', which is no teacher"),
        ({"prices__sizes": {"x": 7}}, "prices.sizes names 'x', which is no teacher"),
        ({"speed__student__report_to": "wand"}, "speed.student.report_to is 'wand'; it must be one of dvclive,"),
        ({"speed__student__report_to": ["wand"]}, "speed.student.report_to.0 is 'wand'; it must be"),
        ({"speed__transformers__batch_sise": 1}, "speed.transformers.batch_sise is not a parameter; did you mean"),
        (
            {"speed__teachers": {"smollm2-ters": {}}},
            "speed.teachers names 'smollm2-ters', which is no teacher; did",
        ),
        (
            {"speed__teachers": {"smollm2-terse": {"batch_size": "x"}}},
            "speed.teachers.smollm2-terse.batch_size is 'x'",
        ),
        ({"speed__teachers": {"smollm2-terse": {"x": 1}}}, "speed.teachers.smollm2-terse.x is not a parameter"),
        (
            {"speed__teachers": {"judge": {"concurency": 1}}},
            "speed.teachers.judge.concurency is not a parameter; did",
        ),
        (
            {"speed__learnability": {"device_map": "auto", "processes": 2, "tensor_parallel": 2, "ray": {}}},
            "speed.learnability.device_map lets one process use all GPUs; leave out processes, tensor_parallel, ray,",
        ),
        (
            {"speed__reward_model": {"tensor_parallel": 2, "ray": {}}},
            "speed.reward_model.tensor_parallel starts processes of this machine, and ray starts tasks; leave out",
        ),
        (
            {"speed__learnability": {"processes": 2, "ray": {}}},
            "speed.learnability.processes starts processes of this machine, and ray starts tasks; leave out processes,",
        ),
        ({"speed__learnability": {"device_map": "cuda"}}, "speed.learnability.device_map is 'cuda'; it must be auto"),
    ],
)
def test_a_mistake_is_one_clear_line(change: dict[str, Any], message: str) -> None:
    [line] = mistakes(shipped(**change))
    assert line.startswith(message), line


def with_itself(**changes: Any) -> dict[str, Any]:
    """The shipped parameters with a teacher `me` that is the student, and with these changes (`me__anchors=2`)."""
    student = {"model": SHIPPED["student"]["model"], "license": "Gemma", "backend": "transformers"}
    me = {**student, "sampling": {"max_tokens": 9}, "is_student": True}
    places = {f"teachers__{at}" if at.startswith("me__") else at: value for at, value in changes.items()}
    return shipped(**{"teachers__me": me, "rewards__unsolved": 0.5} | places)


def test_the_student_as_a_teacher_is_in_no_pool() -> None:
    read = check_params(with_itself())
    assert (read.asked_student, list(read.pool), read.told) == ("me", list(SHIPPED["teachers"]), [])
    [line] = check_params(with_itself(rewards__unsolved=0.0)).told
    assert line.startswith("teachers.me is the student, and rewards.unsolved is 0: its responses are paid for")
    assert check_params(shipped()).told == []
    prices = {"me": {"input": 1, "output": 1}}
    assert check_params(with_itself(prices__teachers=prices, speed__teachers={"me": {"batch_size": 2}}))


HUB = {"model": "o/m", "revision": "0" * 40}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (shipped(rewards__unsolved=0.5), "rewards.unsolved is 0.5, but no teacher is the student; add one with"),
        (with_itself(rewards__unsolved=-1), "rewards.unsolved is -1; it must be a number, 0 or more"),
        (with_itself(me__model="x"), "teachers.me.model is 'x', but is_student is true: it must be student.model, 'pa"),
        (
            with_itself(student={**SHIPPED["student"], **HUB}, me__model="o/m"),
            "teachers.me.revision is null, but is_st",
        ),
        (with_itself(me__anchors=2), "teachers.me.anchors is 2, but is_student is true, and the student responds to"),
        (with_itself(me__adapter="x"), "teachers.me.adapter is 'x', but is_student is true, and the student is asked"),
        (
            with_itself(teachers={"me": with_itself()["teachers"]["me"]}, strategies={"s": {"rule": "persyn"}}),
            "teachers has only me, which is the student; add one that it can learn from",
        ),
        (
            with_itself(teachers__you=with_itself()["teachers"]["me"]),
            "teachers.you.is_student is true, and teachers.me",
        ),
        (
            with_itself(strategies__s={"rule": "strong", "teacher": "me"}),
            "strategies.s.teacher names 'me', which is the",
        ),
        (
            with_itself(strategies__s={"rule": "persyn", "exclude": ["me"]}),
            "strategies.s.exclude.0 names 'me', which is",
        ),
        (with_itself(licenses__allow_forbidden=["me"]), "licenses.allow_forbidden.0 names 'me', which is the student"),
        (
            with_itself(rewards__gate={"math": 1.0, "instruction": 1.0}),
            "rewards.unsolved is 0.5, but every domain has a gate, or a quality without a scale (reward_",
        ),
    ],
)
def test_a_student_that_cannot_be_asked_so_is_named(data: dict[str, Any], message: str) -> None:
    [line] = mistakes(data)
    assert line.startswith(message)


def test_a_served_student_needs_no_revision() -> None:
    student = {**SHIPPED["student"], **HUB}
    assert check_params(with_itself(student=student, me__model="o/m", me__backend="openai")).asked_student == "me"


def test_a_name_that_is_no_text_must_be_written_as_text() -> None:
    [line] = mistakes(shipped(teachers={**SHIPPED["teachers"], 7: SHIPPED["teachers"]["smollm2-terse"]}))
    assert re.fullmatch(r"teachers\.7 is .* must be text; write '7' in quotes", line)


def test_what_is_missing_is_named() -> None:
    data = shipped()
    del data["pairs"], data["rewards"]["alpha"], data["teachers"]["smollm2-terse"]["sampling"]
    lines = mistakes(data)
    assert sorted(lines) == [
        "pairs is missing; it must be a mapping (keys and their values)",
        "rewards.alpha is missing; it must be a number from 0 to 1",
        "teachers.smollm2-terse.sampling is missing; it must be a mapping (keys and their values)",
    ]


def test_all_mistakes_of_a_file_are_said_at_once() -> None:
    changes = {"rewards__alpha": 2, "router__epochs": "ten", "sft__lora": {"r": 0, "alhpa": 3}, "pair": {}}
    changes |= {"strategies__random__seed": -1, "speed__evaluation__batch_size": None}
    places = ["pair", "rewards.alpha", "router.epochs", "sft.lora.alhpa", "sft.lora.r", "speed.evaluation.batch_size"]
    assert sorted(line.split()[0] for line in mistakes(shipped(**changes))) == [*places, "strategies.random.seed"]


def test_a_section_of_nothing_takes_its_defaults() -> None:
    assert check_params(shipped(pairs=None)).pairs == PairSettings()
    assert mistakes(shipped(rewards=None)) == ["rewards.alpha is missing; it must be a number from 0 to 1"]


def test_a_section_alone_is_read_as_strictly() -> None:
    with pytest.raises(InputError, match=r"^pairs.min_margn is not a parameter; did you mean min_margin\?$"):
        PairSettings.parse({"min_margn": 0}, "pairs")
    with pytest.raises(InputError, match=r"^teachers.t.sampling is missing"):
        Teacher.parse({"model": "m", "license": "x", "backend": "openai"}, "teachers.t")
    with pytest.raises(InputError, match=r"^quality.judge is null, but methods names it"):
        QualitySettings.parse({"methods": {"math": "judge"}}, "quality")
    with pytest.raises(ValueError, match="alpha"):
        RewardSettings(alpha=0.4).changed(alpha=2)


def test_a_teachers_own_knobs_are_over_those_of_its_backend() -> None:
    speed: dict[str, Any] = {
        "transformers": {"batch_size": 3, "dtype": "float32"},
        "teachers": {"smollm2-terse": {"batch_size": 5}},
    }
    speed |= {"openai": {"base_url": "https://a/v1", "concurrency": 2}}
    speed["teachers"]["judge"] = {"base_url": "https://b/v1"}
    params = check_params(shipped(speed=speed))
    assert (params.speed_of("smollm2-terse").batch_size, params.speed_of("smollm2-terse").dtype) == (5, "float32")
    assert params.speed_of("smollm2-steps").batch_size == 3
    assert (params.speed_of("judge").base_url, params.speed_of("judge").concurrency) == ("https://b/v1", 2)


def test_what_a_backend_does_not_honour_is_named_before_any_model_is_loaded() -> None:
    data, asked = shipped(), {"max_tokens": 8, "seed": None, "presence_penalty": 1}
    data["teachers"]["smollm2-terse"] |= {"sampling": asked, "extra_body": {"user": "x"}, "host": "here"}
    data["teachers"]["smollm2-steps"] |= {"sampling": {"max_tokens": 8, "extra": {"top_k": 2, "repetition_penalty": 2}}}
    why, cure = "which the backend transformers does not honour", "or choose another backend"
    terse, steps = "teachers.smollm2-terse", "teachers.smollm2-steps"
    assert mistakes(data) == [
        f"{terse}.sampling.seed is null, {why}; give a number, {cure} (openai)",
        f"{terse}.sampling.presence_penalty is 1, {why}; remove it, {cure} (vllm or openai)",
        f"{terse}.extra_body.user is 'x', {why}; remove it, {cure} (vllm or openai)",
        f"{terse}.host is 'here', {why}; remove it, {cure} (openai)",
        f"{steps}.sampling.extra.repetition_penalty is 2, {why}; remove it, {cure} (vllm or openai)",
    ]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"extra_body": {"top_k": 2}}, "extra_body holds top_k, which cannot be set here; it must be sampling.top_k"),
        ({"extra_body": {"max_completion_tokens": 2}}, "extra_body holds max_completion_tokens, which cannot be set"),
        ({"extra_body": {"stream": True}}, "extra_body holds stream, which cannot be set here; remove it"),
        (
            {"extra_body": {"chat_template_kwargs": {}}, "template": {"a": 1}},
            "extra_body holds chat_template_kwargs, which cannot be set here; the teacher's `template` holds",
        ),
        (
            {"sampling": {"max_tokens": 1, "extra": {"user": "x"}}, "extra_body": {"user": "x"}},
            "extra_body holds user, which sampling.extra holds too; remove it from extra",
        ),
        (
            {"sampling": {"max_tokens": 1, "top_k": 2, "extra": {"top_k": 2}}},
            "sampling.extra holds top_k, which is given beside it too; remove it from extra",
        ),
        ({"sampling": {"max_tokens": 1, "stop": []}}, "sampling.stop is []; it must be a list (of each: text"),
        ({"sampling": {"max_tokens": 1, "stop": "x"}}, "sampling.stop is 'x'; it must be a list (of each: text"),
        ({"sampling": {"max_tokens": 1, "min_p": 7}}, "sampling.min_p is 7; it must be a number from 0 to 1, or null"),
        ({"sampling": {"max_tokens": 1, "top_k": 0.5}}, "sampling.top_k is 0.5; it must be a whole number, -1 or more"),
        ({"sampling": {"max_tokens": None}}, "sampling.max_tokens is null; it must be a whole number, 1 or more"),
    ],
)
def test_settings_of_requests_that_contradict_or_are_wrong(teacher: dict[str, Any], message: str) -> None:
    entry = {"model": "m", "license": "x", "backend": "openai", "sampling": {"max_tokens": 1}, **teacher}
    with pytest.raises(InputError, match=rf"^teachers\.t\.{re.escape(message)}"):
        Teacher.parse(entry, "teachers.t")


def test_aliases_without_end_are_no_trouble(params: Path) -> None:
    """A billion laughs: nine levels of nine references each."""
    lines = ["a0: &a0 [lol]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    params.write_text("\n".join([*lines, (ROOT / "params.yaml").read_text()]))
    assert read_params().pairs == PairSettings(min_margin=0.0)


UNREADABLE = {
    "an open bracket": b"pairs: {",
    "a duplicate key": b"pairs: {}\npairs: {}",
    "an object": b"pairs: !!python/object/apply:os.system [echo]",
    "not UTF-8": b"pairs: {name: '\xff\xfe\xe9'}",
    "a control character": b"pairs: \x00",
    "two documents": b"pairs: {}\n---\npairs: {}",
    "too deep": b"[" * 5000,
    "a list": b"[pairs, rewards]",
    "a number": b"3",
    "an empty file": b"",
    "a folder": None,
    "no file": None,
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_file_that_cannot_be_read_is_one_line_of_stages_and_commands(
    params: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    content = UNREADABLE[what]
    if content is not None:
        params.write_bytes(content)
    elif what == "a folder":
        params.mkdir()
    monkeypatch.setattr("sys.argv", ["stage", "persyn"])
    with pytest.raises(SystemExit, match=r"^error: [^\n]*params.yaml[^\n]*$") as raised:
        run(import_module("stages.pairs").main, "data/rewards.parquet", "data/pairs.parquet")
    said = {str(raised.value).removeprefix("error: ").replace(f"{params.parent}/", "")}
    for command in (["plan"], ["ledger"], ["generate", "--teacher", "t"], ["params", "--check", "params.yaml"]):
        monkeypatch.setattr("sys.argv", ["persyn", *command])
        with pytest.raises(SystemExit, match=r"^error: [^\n]*params.yaml[^\n]*$") as raised:
            main()
        said.add(str(raised.value).removeprefix("error: ").replace(f"{params.parent}/", ""))
    assert len(said) == 1, "all say the same"


@pytest.mark.parametrize("what", UNREADABLE)
@pytest.mark.parametrize("command", ["report", "diff", "export"])
def test_a_file_that_cannot_be_read_is_one_line_of_what_shows_results(
    params: Path, monkeypatch: pytest.MonkeyPatch, what: str, command: str
) -> None:
    content = UNREADABLE[what]
    if content is not None:
        params.write_bytes(content)
    elif what == "a folder":
        params.mkdir()
    arguments = ["workspace", "workspace"] if command == "diff" else []
    monkeypatch.setattr("sys.argv", ["persyn", command, *arguments])
    with pytest.raises(SystemExit, match=r"^error: [^\n]*params.yaml[^\n]*$"):
        main()


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
        read_params()
    assert secret not in str(raised.value)


def test_a_key_is_not_repeated_where_the_file_cannot_be_read(params: Path) -> None:
    params.write_text("speed: {a: hf_abcdefghijklmnopqrstuvwx, a: hf_abcdefghijklmnopqrstuvwx}")
    with pytest.raises(InputError, match="duplicate key") as raised:
        read_params()
    assert "hf_abc" not in str(raised.value)


def test_what_is_no_key_is_none() -> None:
    entry = {
        **SHIPPED["teachers"]["smollm2-terse"],
        "model": "hf_org/model",
        "system": "ask-the-teacher-again-please",
    }
    data = shipped(teachers__other=entry, speed__openai={"api_key_env": "OPENAI_API_KEY"})
    assert check_params(data).speed_of("judge").api_key_env == "OPENAI_API_KEY"


@pytest.mark.parametrize(
    "name",
    ["../../etc/x", "a/b", "con", "qwen2.5-7b", "x" * 65, "\u0430", "-rf", "A", "a b", "$(id)", ""],
)
@pytest.mark.parametrize("section", ["teachers", "strategies"])
def test_a_name_that_cannot_be_a_file_is_refused(section: str, name: str) -> None:
    entry = next(iter(SHIPPED[section].values()))
    [line] = mistakes(shipped(**{section: {**SHIPPED[section], name: entry}}))
    assert line.startswith(f"{section}.{name}".removesuffix(".") + " cannot name a file"), line


def test_data_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise InputError("prompt \x1b[2J\x1b]0;owned\x07\r\nforged \u202eline \x9b31m")

    monkeypatch.setattr("sys.argv", ["stage"])
    with pytest.raises(SystemExit) as raised:
        run(main)
    assert str(raised.value) == "error: prompt \\x1b[2J\\x1b]0;owned\\x07\\r\\nforged \\u202eline \\x9b31m"


def test_parameters_cannot_steer_the_terminal(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with params.open("w") as file:
        YAML().dump(shipped(pairs={"a\x1b[2J\nb": 1}, rewards__normalization="\x1b[2J"), file)
    monkeypatch.setattr("sys.argv", ["persyn", "plan"])
    with pytest.raises(SystemExit) as raised:
        main()
    assert "\x1b" not in str(raised.value)
    assert [line[:7] for line in str(raised.value).splitlines()] == ["error: "] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_is_told_to_stop_says_how_to_go_on(number: signal.Signals) -> None:
    program = "import time; from stages import run; run(lambda: (print('started', flush=True), time.sleep(60)))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as stage:
        assert stage.stdout
        stage.stdout.readline()
        stage.send_signal(number)
        _, message = stage.communicate(timeout=50)
    assert stage.returncode == 128 + number
    assert message.startswith(f"stopped by {number.name}; ")
    assert message.endswith("run the same command to continue\n")


def test_run_ends_in_one_line_for_each_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise InputError("got this, need that", "and this")

    monkeypatch.setattr("sys.argv", ["stage"])
    with pytest.raises(SystemExit, match=r"^error: got this, need that\nerror: and this$"):
        run(main)
    monkeypatch.setenv("PERSYN_TRACEBACK", "1")
    with pytest.raises(InputError):
        run(main)


def test_reading_loads_no_engine() -> None:
    heavy = {"torch", "transformers", "scipy", "openai", "vllm", "ray", "datasets", "trl", "peft", "lm_eval", "dvc"}
    program = f"import sys; from persyn.project.params import *; read_params(); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_schema_is_current() -> None:
    current = (ROOT / "params.schema.json").read_text()
    assert current == schema_text(), "run `persyn params --schema > params.schema.json`"
    Draft202012Validator.check_schema(json.loads(current))


def test_the_page_is_current() -> None:
    current = (ROOT / "docs/params.md").read_text()
    assert current == reference_page(), "run `persyn params --page > docs/params.md`"


def test_every_parameter_says_what_it_means() -> None:
    assert undocumented() == []
    rows = {f"{part.name}.{row.name}": row for part in build_reference() for row in part.rows}
    assert rows["rewards.alpha"].takes == "a number from 0 to 1"
    assert rows["rewards.alpha"].default is None
    assert rows["teachers.<name>.sampling.temperature"].takes == "a number, 0 or more, or null"
    assert "teachers.<name>.sampling.extra" not in rows, "an earlier name is read, but not taught"
    assert rows["router.learning_rate"].default == "4e-06"
    assert not [name for name, row in rows.items() if "a value" in row.takes], "each type has its word in TYPES"
    assert TYPES


def test_the_command_prints_the_reference_and_checks_files(params: Path) -> None:
    invoke = CliRunner().invoke
    whole = invoke(app, ["params"]).stdout
    one = invoke(app, ["params", "rewards"]).stdout
    assert one in whole
    assert "alpha: a number from 0 to 1; must be given\n      Weight of learnability" in one
    assert invoke(app, ["params", "--schema"]).stdout == schema_text()
    assert invoke(app, ["params", "--page"]).stdout == reference_page()
    files = [str(ROOT / name) for name in NAMES]
    result = invoke(app, ["params", *(word for file in files for word in ("--check", file))])
    assert [line.split(": ok")[0] for line in result.stdout.splitlines()] == files
    with params.open("w") as file:
        YAML().dump(with_itself(rewards__unsolved=0.0), file)
    lines = invoke(app, ["params", "--check", str(params)]).stdout.splitlines()
    assert [line.removeprefix(f"{params}: ")[:31] for line in lines] == [
        "ok, 3 teachers, 2 strategies",
        "teachers.me is the student, and",
    ]


def test_tasks_that_nobody_knows_are_told_before_a_run(
    params: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with params.open("w") as file:
        YAML().dump(shipped(evaluation__tasks=["persyn_mat", "arc_easy"]), file)
    monkeypatch.setattr("sys.argv", ["persyn", "params", "--check", "params.yaml"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "evaluation.tasks are not checked: there is no folder tasks" in caplog.text
    (params.parent / "tasks").symlink_to(ROOT / "tasks")
    for command in (["params", "--check", "params.yaml"], ["plan"]):
        monkeypatch.setattr("sys.argv", ["persyn", *command])
        with pytest.raises(SystemExit, match=r"evaluation.tasks: .'persyn_mat'.; .*; did you mean persyn_math"):
            main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reward"], "error: reward is no section of params.yaml; did you mean rewards?"),
        (["rewards", "--page"], "error: a section, --check, --page and --schema were given together; give one of them"),
        (
            ["--check", "params.yaml", "--check", "none.yaml"],
            "error: params.yaml: pairs.min_margin is 'x'; it must be a number, 0 or more\n"
            "error: params.yaml: rewards.alpha is 2; it must be a number from 0 to 1\n"
            "error: there is no none.yaml here; run the command in the folder of a project",
        ),
    ],
)
def test_the_commands_mistakes_are_lines(
    params: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    with params.open("w") as file:
        YAML().dump(shipped(rewards__alpha=2, pairs={"min_margin": "x"}), file)
    monkeypatch.setattr("sys.argv", ["persyn", "params", *arguments])
    with pytest.raises(SystemExit) as raised:
        main()
    assert sorted(str(raised.value).splitlines()) == sorted(message.splitlines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget__since": "x"}, "budget.since is 'x'; it must be an ISO date or time"),
        ({"strategies__x": {"rule": "strong", "strong": {}}}, "strategies.x.strong is not a parameter"),
        ({"strategies__x": {"rule": "strong", "teacher": 3}}, "strategies.x.teacher is 3; it must be text"),
        ({"strategies__x": {"Rule": "random"}}, "strategies.x.rule is missing; it must be one of"),
        (
            {"teachers__smollm2-terse__answers": {}},
            "teachers.smollm2-terse.answers is not a parameter; it is called prec",
        ),
        ({"teachers__judge": SHIPPED["teachers"]["smollm2-terse"]}, "teachers.judge has the name that speed.teachers"),
        ({"teachers__con": SHIPPED["teachers"]["smollm2-terse"]}, "teachers.con cannot name a file: Windows keeps"),
        ({"prices__sizes": {"smollm2-terse": 1e308}}, "prices.sizes.smollm2-terse is 1e+308; it must be"),
    ],
)
def test_what_a_stranger_tried(change: dict[str, Any], message: str) -> None:
    [line, *_] = mistakes(shipped(**change))
    assert line.startswith(message)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["stage"])  # pytest's own are no arguments of the stage
    (tmp_path / "metrics").write_text("a file")
    with pytest.raises(SystemExit, match=r"^error: .*metrics.*kept$"):
        run(lambda: write_json({}, tmp_path / "metrics" / "x.json"))

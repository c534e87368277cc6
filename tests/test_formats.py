"""The formats of an export, each read as its own consumer reads it: TRL's trainers, LLaMA-Factory's and Axolotl's
columns, the rules of OpenAI's fine-tuning.
"""

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from huggingface_hub import DatasetCard
from ruamel.yaml import YAML

from persyn.defects import Policies
from persyn.errors import InputError
from persyn.export import EXPORT, NULLABLE
from persyn.export.formats import (
    EXTRA,
    FORMATS,
    Converted,
    convert_alpaca,
    convert_openai,
    convert_sharegpt,
    converted,
    notes,
)
from persyn.export.preferences import COLUMNS, PairRules, build_preferences, used_responses
from persyn.export.thoughts import with_thoughts
from persyn.generation.terms import Licenses
from persyn.messages import Message
from persyn.schemas import LEARNABILITY, REWARDS, write_table
from tests.support.exports import HOSTILE, PARAMS, export, load, make
from tests.support.tables import prompts_table, responses_table, stub_teachers
from tests.support.tiny import build_tokenizer

SYSTEM: Message = {"role": "system", "content": "Be brief."}
ASKED: list[list[Message]] = [
    [{"role": "user", "content": "1+1?"}],
    [SYSTEM, {"role": "user", "content": "2+2?"}],
    [
        SYSTEM,
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "3+3?"},
    ],
    [{"role": "user", "content": "Wait."}, {"role": "user", "content": "4+4?"}],
]
ANSWERS = ["2", "4", "6", "8"]
THOUGHTS = [None, "Two and two.", "Three and three.", None]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A project that was run: 3 prompts, 2 of them parallel, on which the teacher b is better than a."""
    monkeypatch.chdir(tmp_path)
    params: dict[str, Any] = json.loads(json.dumps(PARAMS))
    make(params)
    table = pl.read_parquet("data/rewards.parquet")
    better = pl.when(pl.col("teacher") == "b").then(0.75).otherwise(0.25)
    write_table(table.with_columns(reward=better), "data/rewards.parquet", REWARDS)
    return params


def rows(thoughts: Sequence[str | None] = THOUGHTS, finish: str = "stop") -> pl.DataFrame:
    """EXPORT of ASKED and ANSWERS."""
    made = [
        {name: f"the {name}" if kind == pl.String else 1 for name, kind in EXPORT.items()}
        | {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}], "reasoning": thought}
        | {"messages": [*prompt, {"role": "assistant", "content": answer}], "finish_reason": finish}
        for prompt, answer, thought in zip(ASKED, ANSWERS, thoughts, strict=True)
    ]
    return pl.DataFrame(made, schema=EXPORT)


def pairs(
    scores: dict[str, float],
    texts: dict[str, str] | None = None,
    rules: PairRules | None = None,
    **changed: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The pairs of one prompt, as rows, and their counts. `changed`: what else is known of the teachers."""
    prompts = prompts_table(["What is 2+2?"])
    names = "".join(scores)
    written = {name: (texts or {}).get(name, f"an answer of {name}") for name in names}
    finish, thoughts = changed.get("finish", {}), changed.get("thoughts", {})
    responses = pl.concat(
        responses_table(prompts, name, [written[name]], finish.get(name, "stop"), [thoughts.get(name)])
        for name in names
    )
    key = {"prompt_id": prompts["prompt_id"][0]}
    rewards = [key | {"teacher": name, "quality": 1.0, "learnability": -1.0, "reward": scores[name]} for name in names]
    learned = [
        key
        | {"teacher": name, "learnability": -1.0, "truncated": name in changed.get("truncated", "")}
        | {"num_tokens": changed.get("tokens", {}).get(name, 10)}
        for name in names
    ]
    teachers = stub_teachers(names)
    for name, training in changed.get("training", {}).items():
        teachers[name] = teachers[name].changed(training=training)
    tables = responses, pl.DataFrame(rewards, schema=REWARDS), pl.DataFrame(learned, schema=LEARNABILITY)
    licenses = Licenses(allow_forbidden=changed.get("allowed", []))
    table, counts = build_preferences(
        prompts, *tables, teachers, rules or PairRules(), Policies(**changed.get("policies", {})), licenses
    )
    assert table.columns == list(COLUMNS)
    return table.to_dicts(), counts


def sides(found: list[dict[str, Any]]) -> list[str]:
    """Chosen and rejected teacher of each pair."""
    return [row["chosen_teacher"] + row["rejected_teacher"] for row in found]


def test_a_pair_is_the_best_and_the_worst_or_all_are_taken() -> None:
    found, counts = pairs({"a": 0.1, "b": 0.9, "c": 0.5})
    assert sides(found) == ["ba"]
    [row] = found
    assert row["prompt"] == [{"role": "user", "content": "What is 2+2?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "an answer of b"}]
    assert row["rejected"] == [{"role": "assistant", "content": "an answer of a"}]
    assert (row["chosen_reward"], row["rejected_reward"], row["margin"]) == (0.9, 0.1, 0.8)
    assert (row["chosen_model"], row["rejected_license"], row["license"]) == ("model-b", "MIT", "Apache-2.0")
    assert counts == {"prompts": 1, "pairs": 3, "kept": 1, "dropped": {"narrower margin": 2}}
    found, counts = pairs({"a": 0.1, "b": 0.9, "c": 0.5}, rules=PairRules(pairs="all"))
    assert sides(found) == ["ba", "bc", "ca"]
    assert counts["dropped"] == {}


def test_ties_narrow_margins_and_equal_texts_are_no_pairs() -> None:
    rules = PairRules(pairs="all", min_margin=0.3)
    found, counts = pairs({"a": 0.1, "b": 0.9, "c": 0.9 + 1e-12, "d": 0.4, "e": 0.7}, {"e": "an answer of a"}, rules)
    assert sides(found) == ["ba", "bd", "ca", "cd"]
    assert counts["dropped"] == {"tie": 1, "margin": 4, "same text": 1}
    with pytest.raises(InputError, match=r"no pair is left of 1 \(dropped: \{'tie': 1\}\); lower --min-margin"):
        pairs({"a": 0.5, "b": 0.5})


def test_a_pair_needs_the_terms_of_both_teachers(caplog: pytest.LogCaptureFixture) -> None:
    scores = {"a": 0.1, "b": 0.9, "c": 0.5}
    found, counts = pairs(scores, training={"b": "forbidden", "a": "unknown"})
    assert sides(found) == ["ca"]
    assert counts["dropped"] == {"terms of a teacher": 2}
    assert "a: whether the outputs may train other models is unknown" in caplog.text
    found, _ = pairs(scores, training={"a": "forbidden"}, allowed=["a"])
    assert sides(found) == ["ba"]
    assert found[0]["rejected_training"] == "forbidden"
    with pytest.raises(InputError, match=r"no pair is left of 1 .*'terms of a teacher': 1"):
        pairs({"a": 0.1, "b": 0.9}, training={"a": "forbidden"})


def test_a_response_with_a_defect_is_never_chosen_but_may_be_rejected() -> None:
    scores, refusal = {"a": 0.1, "b": 0.9, "c": 0.5}, "I cannot help with that."
    found, counts = pairs(scores, {"b": refusal})
    assert sides(found) == ["ca"]
    assert counts["dropped"] == {"defect of the better": 2}
    assert sides(pairs(scores, {"b": refusal}, policies={"refusal": "keep"})[0]) == ["ba"]
    [row] = pairs(scores, {"a": refusal})[0]
    assert (row["rejected_teacher"], row["rejected_defect"]) == ("a", "refusal")
    assert sides(pairs(scores, finish={"b": "length"})[0]) == ["ca"], "it was cut"
    [row] = pairs(scores, finish={"b": "length"}, policies={"length": "keep"})[0]
    assert (row["chosen_teacher"], row["chosen_finish_reason"]) == ("b", "length")


def test_pairs_of_like_length_only() -> None:
    scores, tokens = {"a": 0.1, "b": 0.9, "c": 0.5}, {"a": 100, "b": 50, "c": 80}
    found, counts = pairs(scores, rules=PairRules(same_length=0.2), tokens=tokens)
    assert sides(found) == ["ca"], "the widest margin of those that are left"
    assert counts["dropped"] == {"length": 2}
    assert (found[0]["chosen_tokens"], found[0]["rejected_tokens"]) == (80, 100)
    _, counts = pairs(scores, rules=PairRules(same_length=0.2), tokens=tokens, truncated="b")
    assert counts["dropped"] == {"length unknown": 2}


def test_a_thought_is_in_a_column_or_in_the_message_too() -> None:
    scores, thoughts = {"a": 0.1, "b": 0.9}, {"b": "Two and two."}
    [row] = pairs(scores, thoughts=thoughts)[0]
    assert (row["chosen_reasoning"], row["rejected_reasoning"]) == ("Two and two.", None)
    assert row["chosen"] == [{"role": "assistant", "content": "an answer of b"}]
    [row] = pairs(scores, thoughts=thoughts, rules=PairRules(thinking="keep"))[0]
    assert row["chosen"] == [{"role": "assistant", "content": "an answer of b", "reasoning_content": "Two and two."}]
    assert row["rejected"][0]["reasoning_content"] is None
    same = dict.fromkeys("ab", "the same")
    assert pairs(scores, same, thoughts=thoughts, rules=PairRules(thinking="keep"))[1]["kept"] == 1
    with pytest.raises(InputError, match="'same text': 1"):
        pairs(scores, same, thoughts=thoughts)


def test_a_chat_template_of_trl_renders_the_thought_of_a_pair() -> None:
    [row] = pairs({"a": 0.1, "b": 0.9}, thoughts={"b": "Two and two."}, rules=PairRules(thinking="keep"))[0]
    template = files("trl").joinpath("chat_templates/qwen3_training.jinja").read_text()
    render = build_tokenizer(template).apply_chat_template
    assert "<think>\nTwo and two.\n</think>\n\nan answer of b" in render(row["prompt"] + row["chosen"], tokenize=False)
    assert "an answer of a" in render(row["prompt"] + row["rejected"], tokenize=False)


def test_rewards_of_another_run_are_refused() -> None:
    prompts = prompts_table(["What is 2+2?"])
    responses = responses_table(prompts, "a", ["4"])
    scored = {"prompt_id": prompts["prompt_id"][0], "quality": 1.0, "learnability": -1.0, "reward": 0.5}
    rewards = pl.DataFrame([scored | {"teacher": name} for name in "ab"]).select(REWARDS.names())
    learned = LEARNABILITY.to_frame()
    with pytest.raises(InputError, match=r"2 of 2 rewards are of no response \(first: \w+ of a\): the tables are from"):
        build_preferences(
            prompts, responses, rewards, learned, stub_teachers("ab"), PairRules(), Policies(), Licenses()
        )


def test_trl_trains_a_step_on_the_exported_pairs_as_they_are(project: dict[str, Any], chat_model: str) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    said = export("--format", "dpo")
    assert "exports/dpo: 2 pairs of 2 teachers in 1 parquet file; README.md is the card" in said
    assert "the chosen response is the longer one in 0 of 2 pairs" in said
    dataset, tokenizer = load("exports/dpo"), AutoTokenizer.from_pretrained(chat_model)
    assert dataset.column_names == list(COLUMNS)
    assert {row["chosen"][0]["content"][0] for row in dataset} == {"b"}
    once: dict[str, Any] = {"max_steps": 1, "report_to": [], "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    model = AutoModelForCausalLM.from_pretrained(chat_model)
    classifier = AutoModelForSequenceClassification.from_pretrained(chat_model, num_labels=1)
    trainers = {
        "dpo": DPOTrainer(model, args=DPOConfig("dpo", **once), processing_class=tokenizer, train_dataset=dataset),
        "reward": RewardTrainer(
            classifier, args=RewardConfig("reward", **once), processing_class=tokenizer, train_dataset=dataset
        ),
    }
    for name, trainer in trainers.items():
        prepared: Any = trainer.train_dataset
        for row, given in zip(prepared, dataset, strict=True):
            for side in ("chosen", "rejected"):
                assert given[side][0]["content"] in tokenizer.decode(row[f"{side}_ids"]), name
        assert math.isfinite(trainer.train().training_loss), name


def test_the_card_of_pairs_says_what_was_dropped_and_whose_terms_hold(project: dict[str, Any]) -> None:
    project["teachers"]["b"] |= {"license": "GPL"}
    YAML().dump(project, Path("params.yaml"))
    export("--format", "dpo", "--out", "pairs", "--min-margin", "0.25", "--same-length", "0.5")
    card = DatasetCard.load(Path("pairs/README.md"))
    for said in (
        "2 of two teachers with rewards on a parallel prompt, 2 kept",
        "Margin: above 0.25 in reward.",
        "Lengths in tokens differ by at most 50% of the longer.",
        "Responses of b (licence GPL) may train other models.",
        "| b | model-b |  | GPL | allowed | 2 | 50.0% |",
        "RewardTrainer takes the folder as it is too",
        "type: chat_template.default",
    ):
        assert said in card.text, said
    assert all(f"| {name} |".replace("_", "\\_") in card.text for name in COLUMNS)
    for hidden in ("someone", str(Path.cwd()), "Owned", "HYPERLINK", "\x1b"):
        assert hidden not in card.content


def llama_factory(row: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """A row as LLaMA-Factory's converters read it by its entry of dataset_info.json (src/llamafactory/data): the turns
    before the answer, the answer, the system prompt.
    """
    columns = info["columns"]
    if info["formatting"] == "alpaca":
        said = [text for pair in row[columns["history"]] for text in pair]
        asked = [row[columns[name]] for name in ("prompt", "query")]
        said += ["\n".join(filter(None, asked)), row[columns["response"]]]
        return {"said": said[:-1], "answer": said[-1], "system": row[columns["system"]]}
    tags = {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "system_tag": "system",
    }
    tags |= info.get("tags", {})
    turns = row[columns["messages"]]
    system = ""
    if turns[0][tags["role_tag"]] == tags["system_tag"]:
        system, turns = turns[0][tags["content_tag"]], turns[1:]
    for place, turn in enumerate(turns):
        if turn[tags["role_tag"]] != tags[("user_tag", "assistant_tag")[place % 2]]:
            return {}
    texts = [turn[tags["content_tag"]] for turn in turns]
    return {"said": texts[:-1], "answer": texts[-1], "system": system}


def axolotl(row: dict[str, Any], entry: dict[str, Any]) -> list[Message]:
    """The turns that Axolotl's `type: chat_template` makes of a row by its entry of `datasets`
    (src/axolotl/prompt_strategies/chat_template.py).
    """
    assert entry["type"] == "chat_template"
    assert (entry["roles_to_train"], entry["train_on_eos"]) == (None, None), "the loss is on the last turn only"
    roles = {"human": "user", "gpt": "assistant"}
    keys = entry.get("message_property_mappings") or dict.fromkeys(("role", "content"))
    keys = {key: name or key for key, name in keys.items()} | {"reasoning_content": "reasoning_content"}
    turns = []
    for message in row[entry.get("field_messages", "messages")]:
        turn = {key: message[name] for key, name in keys.items() if message.get(name) is not None}
        turn["role"] = roles.get(turn["role"], turn["role"])
        if entry.get("split_thinking") and turn["role"] == "assistant" and "<think>" in turn["content"]:
            thought, _, rest = turn["content"].partition("<think>")[2].partition("</think>")
            turn |= {"reasoning_content": thought.strip(), "content": rest.lstrip()}
        turns.append(turn)
    return turns


def yaml_of(form: str, key: str) -> Any:
    """What the card's yaml block with this key says."""
    found = [block.partition("```")[0] for block in FORMATS[form].load.split("```yaml\n")[1:]]
    return next(parsed for block in found if key in (parsed := YAML(typ="safe").load(block)))[key]


def read_as_llama_factory(made: Converted, form: str) -> list[dict[str, Any]]:
    info = FORMATS[form].dataset_info
    assert info
    return [llama_factory(row, dict(info)) for row in made.rows]


def test_llama_factory_reads_conversations_and_instructions_alike() -> None:
    expected = [
        {"said": ["1+1?"], "answer": "2", "system": ""},
        {"said": ["2+2?"], "answer": "4", "system": "Be brief."},
        {"said": ["Hi", "Hello", "3+3?"], "answer": "6", "system": "Be brief."},
    ]
    plain = convert_sharegpt(rows(), "none")
    assert read_as_llama_factory(plain, "sharegpt") == [*expected, {}], "it skips two questions in a row"
    assert "LLaMA-Factory will skip 1 rows: their turns do not alternate" in notes(rows(), plain, "sharegpt", "none")
    alpaca = convert_alpaca(rows(), "none")
    assert read_as_llama_factory(alpaca, "alpaca") == [expected[2], *expected[:2]], "those with a history come first"
    assert notes(rows(), alpaca, "alpaca", "none")[0] == "1 rows left out: turns that do not alternate"
    assert read_as_llama_factory(convert_openai(rows(), "none"), "openai")[:3] == [expected[2], *expected[:2]]
    for convert in (convert_sharegpt, convert_alpaca):
        kept = [row["answer"] for row in read_as_llama_factory(convert(rows(), "keep"), convert.__name__[8:]) if row]
        assert "<think>\nTwo and two.\n</think>\n\n4" in kept
        assert "2" in kept


def test_axolotl_reads_conversations_with_their_thoughts() -> None:
    thoughtful = with_thoughts(rows())
    expected = [
        [*prompt, {"role": "assistant", "content": answer}] for prompt, answer in zip(ASKED, ANSWERS, strict=True)
    ]
    with_thought = [
        [*turns[:-1], turns[-1] | ({"reasoning_content": thought} if thought else {})]
        for turns, thought in zip(expected, THOUGHTS, strict=True)
    ]
    [entry] = yaml_of("sharegpt", "datasets")
    assert [axolotl(row, entry) for row in convert_sharegpt(rows(), "none").rows] == expected
    assert [axolotl(row, entry) for row in convert_sharegpt(rows(), "keep").rows] == with_thought
    [entry] = yaml_of("parquet", "datasets")
    assert [axolotl(row, entry) for row in thoughtful.to_dicts()] == with_thought
    [entry] = yaml_of("openai", "datasets")
    first, *others = [axolotl(row, entry) for row in convert_openai(rows(), "none").rows]
    assert [*others[:2], first, *others[2:]] == expected
    [entry] = yaml_of("alpaca", "datasets")
    assert entry["type"] == "alpaca_w_system.load", "which reads instruction, input, output and system"
    assert {"instruction", "input", "output", "system"} <= set(convert_alpaca(rows(), "none").rows[0])


def openai_errors(example: Any) -> list[str]:
    """The checks of OpenAI's cookbook, "Data preparation and analysis for chat model fine-tuning"."""
    if not isinstance(example, dict):
        return ["data_type"]
    if not example.get("messages"):
        return ["missing_messages_list"]
    errors = []
    for message in example["messages"]:
        errors += ["message_missing_key"] * (not {"role", "content"} <= set(message))
        errors += ["message_unrecognized_key"] * bool(set(message) - {"role", "content", "name", "weight"})
        errors += ["unrecognized_role"] * (message.get("role") not in ("system", "user", "assistant"))
        errors += ["missing_content"] * (not message.get("content") or not isinstance(message["content"], str))
    if not any(message.get("role") == "assistant" for message in example["messages"]):
        errors.append("example_missing_assistant_message")
    return errors


def test_openai_takes_every_line_and_trains_on_the_last_answer_only(project: dict[str, Any]) -> None:
    said = export("--format", "openai")
    assert "OpenAI takes no file with fewer than 10 rows; this one has 3" in said
    folder = Path("exports/persyn-openai")
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().split("\n")[:-1]]
    beside = [json.loads(line) for line in (folder / "rows.jsonl").read_text().split("\n")[:-1]]
    assert [openai_errors(line) for line in lines] == [[], [], []]
    assert all(set(line) == {"messages"} and line["messages"][-1]["role"] == "assistant" for line in lines)
    assert {line["messages"][0]["content"] for line in lines} == set(HOSTILE)
    for line, row in zip(lines, beside, strict=True):
        assert line["messages"][-1]["content"].startswith(f"{row['teacher_id']}: ")
        assert set(row) == {*EXTRA, "reasoning"}
    made = convert_openai(rows(), "none")
    weights = [turn.get("weight") for turn in made.rows[0]["messages"]]
    assert weights == [None, None, 0, None, None], "the first row, by which readers guess the keys of a message"
    assert [line["reasoning"] for line in made.side] == ["Three and three.", "", "Two and two.", ""], "line by line"
    empty = rows().with_columns(messages=pl.lit([{"role": "assistant", "content": ""}], dtype=EXPORT["messages"]))
    assert convert_openai(empty, "none").left_out == {"an empty message": 4}


@pytest.mark.parametrize(
    ("form", "why"), [("alpaca", "turns that do not alternate 1"), ("openai", "an empty message 1")]
)
def test_a_format_that_can_hold_no_row_is_refused(form: str, why: str) -> None:
    turn = pl.lit([{"role": "assistant", "content": ""}], dtype=EXPORT["messages"])
    odd = rows()[3:].with_columns(messages=turn)
    with pytest.raises(InputError, match=rf"--format {form} can hold none of 1 rows \({why}\); choose another format"):
        converted(odd, form, "none")
    assert converted(odd, "sharegpt", "none").rows
    assert converted(odd, "hub", "none") == Converted()


@pytest.mark.parametrize("form", ["sharegpt", "alpaca", "openai", "jsonl", "parquet"])
def test_every_format_is_a_folder_with_a_card_that_datasets_loads(project: dict[str, Any], form: str) -> None:
    assert f"exports/persyn-{form}: 3 rows of 2 teachers as {form}; README.md is the card" in export("--format", form)
    folder, loaded = Path(f"exports/persyn-{form}"), load(f"exports/persyn-{form}")
    card = DatasetCard.load(folder / "README.md")
    assert FORMATS[form].load in card.text
    assert all(name in card.text.replace("\\_", "_") for name in loaded.column_names)
    for hidden in ("someone", str(Path.cwd()), "Owned", "HYPERLINK", "\x1b"):
        assert hidden not in card.content
    if form in ("jsonl", "parquet"):
        export()
        assert loaded.to_list() == load("exports/persyn").to_list()
    elif form != "openai":
        assert set(EXTRA) < set(loaded.column_names)
        assert set(loaded["teacher_license"]) == {"MIT"}
    if info := FORMATS[form].dataset_info:
        entry = json.loads((folder / "dataset_info.json").read_text())["persyn"]
        assert entry == {"file_name": "train.jsonl", **info}
    export("--format", form)
    with pytest.raises(InputError, match="holds an earlier export that differs; --force replaces it"):
        export("--out", str(folder))
    export("--out", str(folder), "--force")
    assert not (folder / "dataset_info.json").exists()


@pytest.mark.parametrize("form", list(FORMATS))
def test_what_becomes_of_thoughts_and_of_cut_answers_is_told(form: str) -> None:
    cut = rows(finish="length")
    for thinking in ("none", "keep"):
        convert = FORMATS[form].convert
        told = "\n".join(notes(cut, convert(cut, thinking) if convert else Converted(), form, thinking))
        assert "2 of 4 answers have a thought; it is in " in told
        assert ("so that no model learns it" in told) == (thinking == "none" or form == "openai")
        assert "4 answers were cut (finish_reason length); trainers add an end of turn" in told
    quiet = rows([None] * 4).filter(pl.int_range(pl.len()) < 3)
    assert notes(quiet, Converted(), "jsonl", "keep") == []


def test_thoughts_follow_student_thinking_unless_told(project: dict[str, Any]) -> None:
    table = pl.read_parquet("data/dataset/persyn.parquet").with_columns(reasoning=pl.lit("so be it"))
    table.write_parquet("data/dataset/persyn.parquet")
    assert load_hub()["completion"][0][0].keys() == {"role", "content"}
    project["student"]["thinking"] = "keep"
    YAML().dump(project, Path("params.yaml"))
    assert load_hub()["completion"][0][0]["reasoning_content"] == "so be it"
    assert load_hub("--thinking", "none")["messages"][0][-1].keys() == {"role", "content"}
    assert "it is in `reasoning` of rows.jsonl only" in export("--format", "openai")
    card = Path("exports/persyn/README.md").read_text()
    assert set(NULLABLE) <= set(EXPORT.names())
    assert "reasoning\\_content" not in card


def test_a_column_of_nulls_keeps_its_type(project: dict[str, Any]) -> None:
    export("--format", "jsonl")
    loaded = load("exports/persyn-jsonl")
    assert str(loaded.features["reasoning"]) == "Value('string')", "all are null"
    assert str(loaded.features["messages"]) == "List({'role': Value('string'), 'content': Value('string')})"


def load_hub(*arguments: str) -> Any:
    export(*arguments, "--force")
    return load("exports/persyn")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "dpo", "--strategy", "strong"], "--strategy strong has no meaning for --format dpo, which pairs"),
        (["--pairs", "all"], "--pairs chooses preference pairs; give --format dpo with it, got hub"),
        (["--format", "alpaca", "--min-margin", "0.1"], "--min-margin chooses preference pairs"),
        (["--format", "openai", "--thinking", "keep"], "--format openai has no place for thoughts"),
        (["--format", "jsonl", "--push", "owner/name"], "--push takes --format hub or dpo, got jsonl"),
        (["--format", "dpo", "--min-margin", "0.5"], r"no pair is left of 2 \(dropped: \{'margin': 2\}\)"),
    ],
)
def test_a_mistake_is_one_clear_line(project: dict[str, Any], arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(*arguments)
    assert not Path("exports").exists()


def test_pairs_are_published_only_if_all_terms_allow_it(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    project["teachers"]["a"]["training"] = "unknown"
    YAML().dump(project, Path("params.yaml"))
    with pytest.raises(InputError, match="not pushed publicly: the terms of a are unknown; "):
        export("--format", "dpo", "--push", "owner/name", "--public")
    made = pl.DataFrame(load_pairs())
    assert used_responses(made).height == 4


def load_pairs() -> list[dict[str, Any]]:
    export("--format", "dpo")
    found: list[dict[str, Any]] = load("exports/dpo").to_list()
    return found

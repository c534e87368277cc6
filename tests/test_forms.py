"""Chat templates of other makers' kinds: what each does that most do not."""

from typing import Any

import pytest
from tokenizers import AddedToken

from persyn.chat import encode_parts, encode_prompt, student_tokenizer, with_chat_template
from persyn.errors import InputError
from persyn.prompts.conversations import NoPrompt, read_asked
from persyn.thinking import Thought, opening_tag, split_thought
from tests.support.templates import SHIPPED, tokenizer_for
from tests.support.tiny import CHATML, build_tokenizer

TURNS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# SmolLM3's kind: its switch changes the system prompt, and both of its forms can be told apart.
MODES = (
    "{% set mode = '/no_think' if enable_thinking is defined and not enable_thinking else '/think' %}"
    "{{ '<|im_start|>system\n' + mode + '<|im_end|>\n' }}" + TURNS + ASK
)
# Mistral's kind: the system message stands in the last turn, if that is the user's.
LATE_SYSTEM = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{{ bos_token }}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST]' + (system + '\n\n' if loop.last and system else '') + m.content + '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
# Nemotron-Nano's kind: the thought that a prompt opens is left open before an answer.
NEVER_CLOSED = TURNS.replace("m.content", "('<think>\n' if m.role == 'assistant' else '') + m.content") + ASK.replace(
    "assistant\n", "assistant\n<think>\n"
)
THOUGHT_TAGS = TURNS + ASK.replace("assistant\n", "assistant\n<thought>\n")
USER = [{"role": "user", "content": "A?"}]


def tokenizer(template: Any, *special: str, end: str = "<|im_end|>") -> Any:
    made = build_tokenizer(template)
    made.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    made.eos_token = end
    return with_chat_template(made)


def test_a_switch_that_is_there_is_used() -> None:
    student = student_tokenizer(tokenizer(MODES))
    assert "/no_think" in student.decode(encode_prompt(student, "A?"))
    keeping = student_tokenizer(tokenizer(MODES), "keep")
    assert "/think" in keeping.decode(encode_prompt(keeping, "A?"))


def test_a_system_message_beside_the_last_turn() -> None:
    mistral = tokenizer(LATE_SYSTEM, "[INST]", "[/INST]", end="<eos>")
    asked = [{"role": "system", "content": "Be short."}, *USER]
    prompt, _, answer = encode_parts(mistral, asked, "B.", finished=True)
    assert (mistral.decode(prompt), mistral.decode(answer)) == ("<bos>[INST]Be short.\n\nA?[/INST]", "B.<eos>")
    assert prompt == encode_prompt(mistral, asked)


def test_a_thought_that_is_never_closed_is_refused_without_thoughts() -> None:
    with pytest.raises(InputError, match="opens a thought before an answer and never closes it"):
        student_tokenizer(tokenizer(NEVER_CLOSED))
    student = student_tokenizer(tokenizer(NEVER_CLOSED), "keep")
    parts = encode_parts(student, "A?", "B.", True, None, "keep")
    assert student.decode(parts[1] + parts[2]) == "\n</think>\n\nB.<|im_end|>"


def test_the_tag_that_a_prompt_opens_is_the_one_that_is_closed() -> None:
    student = student_tokenizer(tokenizer(THOUGHT_TAGS), "keep")
    prompt, thought, answer = encode_parts(student, "A?", "B.", True, "Hm.", "keep")
    assert student.decode(thought) == "Hm.\n</thought>\n\n"
    whole = student.decode(thought + answer[:-1])
    assert split_thought(opening_tag(student.decode(prompt)) + whole).answer == "B."
    magistral = student_tokenizer(tokenizer(TURNS + ASK + "{# [THINK] #}", "[THINK]", "[/THINK]"), "keep")
    assert magistral.decode(encode_parts(magistral, "A?", "B.", True, "Hm.", "keep")[1]) == "[THINK]Hm.[/THINK]"


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "deepseek_r1_distill", "glm4moe", "nemotron_3_nano"])
def test_the_thought_of_an_earlier_answer_is_rendered_as_the_library_does(name: str) -> None:
    asked = [*USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nB."}, {"role": "user", "content": "C?"}]
    plain = tokenizer_for(name)
    library = plain.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert plain.decode(encode_prompt(plain, asked)) == plain.decode(library)
    assert encode_parts(student_tokenizer(tokenizer_for(name)), asked, "D.", True)[2]


def test_a_template_that_writes_the_end_of_the_text_between_turns() -> None:
    """The student ends by another token, and the template goes on writing the old one."""
    template = TURNS.replace("<|im_end|>\n", "<|end|>\n' + eos_token + '") + ASK
    student = student_tokenizer(tokenizer(template, "<|end|>", end="<eos>"))
    assert student.eos_token == "<|end|>"
    assert "<|end|>\n<eos><|im_start|>assistant" in student.decode(encode_prompt(student, "A?"))


@pytest.mark.parametrize("name", ["glm4moe", "qwen3"])
def test_an_answer_of_blanks_is_empty(name: str) -> None:
    assert encode_parts(tokenizer_for(name), "A?", " ", True) == encode_parts(tokenizer_for(name), "A?", "", True)


def test_dates_in_odd_forms_and_templates_without_a_default() -> None:
    dated = tokenizer("{{ strftime_now ('%Y') }}" + TURNS + ASK)
    assert "2025" in dated.decode(encode_prompt(dated, "A?"))
    for template in ("{% set now = strftime_now %}{{ now('%Y') }}", "{{ strftime_now(form) }}"):
        with pytest.raises(InputError, match="in a form that cannot be replaced"):
            tokenizer(template + TURNS + ASK)
    with pytest.raises(InputError, match="none is the default"):
        tokenizer({"tool_use": CHATML, "rag": CHATML})
    assert tokenizer({"default": CHATML, "rag": "x"}).chat_template == CHATML


def test_the_marks_of_our_own_are_replaced() -> None:
    text = "a \ufdd0 \ufdd1 \ufdd2answer\ufdd2 \ufdd3 b"
    chat = tokenizer(CHATML)
    _, _, answer = encode_parts(chat, text, text, finished=False)
    assert chat.decode(answer) == "a \ufffd \ufffd \ufffdanswer\ufffd \ufffd b"


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("We need 2+2.</think>The answer is 4.", Thought("We need 2+2.", "The answer is 4.")),
        ("Write `</think>` at the end.", Thought(None, "Write `</think>` at the end.")),
        ("Write </think> at the end.", Thought(None, "Write </think> at the end.")),
        ("<think>Hm</think><response>Four</response>", Thought("Hm", "Four")),
        ("<response>Four</response>", Thought(None, "<response>Four</response>")),
        ("<|channel|> is a control token.", Thought(None, "<|channel|> is a control token.")),
    ],
)
def test_thoughts_of_other_kinds(text: str, thought: Thought) -> None:
    assert split_thought(text, opened=None) == thought


def test_rows_of_mixed_shapes() -> None:
    """Tables that were put together have the keys of the other shape, null."""
    both = {"from": "human", "value": "Hi", "role": None, "content": None}
    assert read_asked([both]).shape == "sharegpt"
    for turn in ({"role": "user", "text": "Hi"}, {"from": "human", "content": "Hi"}):
        with pytest.raises(NoPrompt, match="it must hold text or a conversation"):
            read_asked([turn])


def test_a_shipped_student_template_survives_saving(tmp_path: Any) -> None:
    from persyn.models import load_tokenizer

    for file in sorted(SHIPPED.glob("qwen3*.jinja")):
        if "training" in file.stem or "vl" in file.stem:
            continue
        for thinking in ("none", "keep"):
            student = student_tokenizer(tokenizer_for(file.stem), thinking)
            student.save_pretrained(tmp_path / f"{file.stem}-{thinking}")
            loaded = load_tokenizer(str(tmp_path / f"{file.stem}-{thinking}"))
            ids = loaded.apply_chat_template(USER, add_generation_prompt=True, return_dict=True)["input_ids"]
            assert list(ids) == encode_prompt(student, "A?")
            assert loaded.eos_token == student.eos_token

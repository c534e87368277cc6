"""Models: a tiny random stand-in for a hub model, built here. The tests build their tiny models of the same parts.

A stand-in answers like a model that is asked: some text, then the end of its turn. Greedy decoding gives text because
the rows of the head that stand for control tokens and blanks are zero, and it ends because `forced_eos_token_id` makes
its last allowed token the end.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rehearsal.families import Family, family_of

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
}
VOCABULARY = 400
TEXT = """
The clock in the old tower struck twelve, and nobody in the town was awake to hear it. Rain fell on the roofs, on the
market place and on the river, and the wind went through the streets as if it were looking for somebody. A woman who
could not sleep opened her window, counted the strokes, and wondered why there were thirteen of them. In the morning
she asked the man who took care of the clock. He told her that there had been twelve, as there always are; but when he
climbed the stairs to make sure, he found the door open, and on the floor a question that was written in chalk.
Question: what is 12 times 13, and what is left of it when it is shared by 7 people? Answer: the product is 156; each
of them gets 22, and 2 are left. Please answer with a number, a word, a list or a sentence, and do not say more than
what was asked. Name a colour. Name a tree. Write a function that returns the sum of two numbers.
def add(first: int, second: int) -> int:
    return first + second
for number in range(10):
    assert add(number, 1) == number + 1
"""
"""What tokenizers are trained on."""
CODE = (Path(__file__), Path(__file__).with_name("families.py"))


def build_once(folder: Path, model: str, is_reward_model: bool = False) -> Path:
    """The stand-in for a hub id, below `folder`; built where this code has not built it yet.

    Raises:
        InputError: its family is not known.
    """
    family = family_of(model)
    code = hashlib.sha256(b"".join(path.read_bytes() for path in CODE)).hexdigest()[:12]
    place = folder / code / model
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            build(Path(scratch) / "model", model, family, is_reward_model)
            shutil.move(Path(scratch) / "model", place)
    return place


def build(folder: Path, model: str, family: Family, is_reward_model: bool) -> None:
    """Write a random model of the family and its tokenizer; other ids get other weights."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    tokenizer = build_tokenizer(family)
    turn, text = (tokenizer.convert_tokens_to_ids(t) for t in (family.tokens.end_of_turn, family.tokens.end_of_text))
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    shape = SIZES | dict(family.sizes) | ids | {"vocab_size": len(tokenizer)}
    shape["max_position_embeddings"] = family.context
    seed = int(hashlib.sha256(model.encode()).hexdigest()[:8], 16)
    built = random_model(family.architecture, shape, seed, is_reward_model)
    if not is_reward_model:
        silent = [i for i in range(len(tokenizer)) if not tokenizer.decode([i], skip_special_tokens=True).strip()]
        with torch.no_grad():
            built.get_output_embeddings().weight[silent] = 0.0
        ends = [tokenizer.eos_token_id] if family.ends_text else sorted({turn, text})
        built.generation_config = transformers.GenerationConfig(**ids | {"eos_token_id": ends})
        built.generation_config.forced_eos_token_id = tokenizer.eos_token_id
        if family.template and "<think>\n{%" in family.template:  # the prompt opens a thought: close it at once
            closing = tokenizer.encode("</think>", add_special_tokens=False)
            built.generation_config.sequence_bias = [[closing, 1000.0]]
            built.generation_config.no_repeat_ngram_size = 1
    built.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def random_model(architecture: str, shape: dict[str, Any], seed: int, is_reward_model: bool = False) -> Any:
    """A model of this architecture with random weights.

    Args:
        architecture: transformers' name: `<architecture>Config` is its configuration.
        shape: the fields of that configuration.
        is_reward_model: whether its head gives one score instead of tokens.
    """
    import torch
    import transformers

    config = getattr(transformers, f"{architecture}Config")(**shape)
    torch.manual_seed(seed)
    if is_reward_model:
        config.num_labels = 1
        built: Any = transformers.AutoModelForSequenceClassification.from_config(config)
    else:
        built = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)  # of a real size: scores then differ between tokens
    return built


def train_bpe(control: list[str]) -> Any:
    """A byte-level BPE of VOCABULARY tokens that begins with these control tokens: a Tokenizer of `tokenizers`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([TEXT], trainer)
    return core


def build_tokenizer(family: Family) -> Any:
    """A byte-level BPE with the family's control tokens."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    named = family.tokens
    control = list(
        dict.fromkeys([named.end_of_text, named.end_of_turn, *named.others, *filter(None, [named.bos, named.pad])])
    )
    core = train_bpe(control)
    if named.bos:
        core.post_processor = processors.TemplateProcessing(
            single=[named.bos, "$A"], special_tokens=[(named.bos, core.token_to_id(named.bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=named.bos,
        pad_token=named.pad,
        eos_token=named.end_of_text if family.ends_text or family.template is None else named.end_of_turn,
        additional_special_tokens=control,
    )
    if family.template and "<think>" in family.template:
        tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = family.template
    return tokenizer

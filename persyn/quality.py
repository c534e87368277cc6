"""Quality: how good a response is, by a method that fits its domain. Higher is better; scales differ by method.

An example of what `checkers` reads in `reference` (IFEval's form):
[{"instruction_id": "length_constraints:number_words", "kwargs": {"relation": "less than", "num_words": 40}}]
"""

import json
from collections.abc import Mapping
from typing import Any

import polars as pl
from tqdm import tqdm

from persyn.models import cache_folder, locate_model
from persyn.schemas import QUALITY, InputError


def score_quality(
    prompts: pl.DataFrame,
    responses: pl.DataFrame,
    *,
    methods: Mapping[str, str],
    reward_model: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """Score every response by the method of its prompt's domain.

    Args:
        prompts: PROMPTS.
        responses: RESPONSES of one teacher, each prompt_id in `prompts`.
        methods: domain -> checkers (share of the constraints in `reference` that hold), math_verify (1 if the final
            answer equals `reference`, else 0) or reward_model (the scalar of a sequence-classification model).
        reward_model: {model, revision, max_length}, needed by the method of that name.

    Returns:
        QUALITY.

    Raises:
        InputError: a domain has no method, a method is unknown, or a reference it needs is missing or malformed.
    """
    rows = responses.join(prompts, on="prompt_id", how="left", validate="m:1").sort("prompt_id")
    scorers = {"checkers": share_of_checks, "math_verify": is_right_answer}
    for domain in sorted(set(rows["domain"].cast(pl.String).to_list())):
        if methods.get(domain) not in (*scorers, "reward_model"):
            raise InputError(
                f"quality.methods.{domain} is {methods.get(domain)!r}; it must be {', '.join(scorers)} or reward_model"
            )
    by_model = rows.filter(pl.col("domain").cast(pl.String).replace_strict(dict(methods)) == "reward_model")
    scores = dict(zip(by_model["prompt_id"], _reward_model_scores(by_model, reward_model), strict=True))
    for row in tqdm(rows.iter_rows(named=True), total=rows.height, desc="quality", unit="response"):
        if row["prompt_id"] in scores:
            continue
        if row["reference"] is None:
            raise InputError(
                f"prompt {row['prompt_id']} has no reference, which {methods[row['domain']]} needs; "
                f"name its column as `reference` in prompts.sources, or choose the method reward_model"
            )
        scores[row["prompt_id"]] = scorers[methods[row["domain"]]](row["prompt"], row["response"], row["reference"])
    quality = pl.Series("quality", [scores[identity] for identity in rows["prompt_id"]], dtype=pl.Float64)
    return rows.select("prompt_id", "teacher").with_columns(quality).select(QUALITY.names())


def share_of_checks(prompt: str, response: str, reference: str) -> float:
    """The share of the instructions in `reference` that `response` follows, by lm-eval's strict IFEval checkers."""
    prepare_ifeval()
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_strict

    try:
        checks = json.loads(reference)
        names, kwargs = [check["instruction_id"] for check in checks], [check["kwargs"] for check in checks]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"reference {reference[:80]!r} is not a json list of {{instruction_id, kwargs}}") from error
    unknown = [name for name in names if name not in INSTRUCTION_DICT]
    if unknown or not names:
        raise InputError(f"reference {reference[:80]!r}: unknown instruction {unknown}; see IFEval's registry")
    example = InputExample(key=0, instruction_id_list=names, prompt=prompt, kwargs=kwargs)
    followed = test_instruction_following_strict(example, response).follow_instruction_list
    return sum(followed) / len(followed)


def is_right_answer(prompt: str, response: str, reference: str) -> float:
    """1.0 if math-verify finds the final answer of `response` equal to `reference`, else 0.0."""
    from math_verify.grader import verify
    from math_verify.parser import parse

    gold = parse(f"\\boxed{{{reference}}}")
    if not gold:
        raise InputError(f"reference {reference!r} of the prompt {prompt[:60]!r} is not a mathematical answer")
    return float(verify(gold, parse(response)))


def prepare_ifeval() -> None:
    """Make IFEval's checkers deterministic and self-contained; call it before lm-eval imports them.

    Language detection gets a fixed seed. Where nltk has no sentence splitter, one is provided, so that none is
    downloaded: an installed punkt_tab is used as it is, otherwise a minimal English one (Punkt's own defaults and a
    list of common abbreviations) is written to the cache.
    """
    import langdetect
    import nltk
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    langdetect.DetectorFactory.seed = 0
    folder = cache_folder() / "nltk"
    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))
    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        english = folder / "tokenizers" / "punkt_tab" / "english"
        english.mkdir(parents=True, exist_ok=True)
        parameters = PunktParameters()
        parameters.abbrev_types = {
            "dr",
            "mr",
            "mrs",
            "ms",
            "prof",
            "st",
            "vs",
            "etc",
            "e.g",
            "i.e",
            "no",
            "fig",
            "a.m",
            "p.m",
            "u.s",
            "inc",
            "ltd",
            "jr",
            "sr",
        }
        save_punkt_params(parameters, dir=str(english))


def _reward_model_scores(rows: pl.DataFrame, reward_model: Mapping[str, Any] | None) -> list[float]:
    """One scalar a row: the logit of a sequence-classification model on the rendered conversation."""
    if rows.is_empty():
        return []
    if not reward_model:
        raise InputError("quality.reward_model is missing; the method reward_model needs its model and revision")
    import torch
    from transformers import AutoModelForSequenceClassification

    from persyn.chat import assistant_message, encode_conversation, user_message, with_chat_template
    from persyn.models import load_tokenizer

    where = reward_model["model"], reward_model.get("revision")
    tokenizer = with_chat_template(load_tokenizer(*where))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForSequenceClassification.from_pretrained(
        **locate_model(*where), use_safetensors=True, dtype=torch.bfloat16 if device == "cuda" else torch.float32
    )
    if model.config.num_labels != 1:
        raise InputError(f"{where[0]} gives {model.config.num_labels} scores a text; a reward model must give 1")
    model = model.to(device).eval()
    scores = []
    for prompt, response in tqdm(rows.select("prompt", "response").rows(), desc="reward model", unit="response"):
        ids = encode_conversation(tokenizer, user_message(prompt) + assistant_message(response))
        with torch.inference_mode():  # one by one: a score then cannot depend on its batch mates
            logits = model(torch.tensor([ids[: reward_model.get("max_length", 4096)]], device=device)).logits
        scores.append(logits.float().item())
    return scores

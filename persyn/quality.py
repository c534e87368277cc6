"""Quality: how good a response is, by a method that fits its domain. Higher is better; scales differ by method.

An example of what `checkers` reads in `reference` (IFEval's form):
[{"instruction_id": "length_constraints:number_words", "kwargs": {"relation": "less than", "num_words": 40}}]
"""

import json
from collections.abc import Mapping
from typing import Any

import polars as pl
from tqdm import tqdm

from persyn.models import cache_folder, load_model, load_tokenizer
from persyn.schemas import QUALITY, InputError, check_keys


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
        reward_model: the arguments of reward_model_scores, needed by the method of that name.

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
    scores: dict[str, float] = {}
    if by_model.height:
        check_keys("quality.reward_model", reward_model or {}, reward_model_scores)
        scores = dict(zip(by_model["prompt_id"], reward_model_scores(by_model, **reward_model or {}), strict=True))
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


def reward_model_scores(
    rows: pl.DataFrame, *, model: str, revision: str | None = None, max_length: int = 4096
) -> list[float]:
    """The logit of a one-label sequence-classification model on each rendered conversation.

    Args:
        rows: columns prompt and response.
        max_length: tokens of a conversation that are read, from its start.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from persyn.chat import assistant_message, encode_conversation, user_message, with_chat_template

    tokenizer = with_chat_template(load_tokenizer(model, revision))
    scorer = load_model(AutoModelForSequenceClassification, model, revision)
    if scorer.config.num_labels != 1:
        raise InputError(f"{model} gives {scorer.config.num_labels} scores a text; a reward model must give 1")
    scores = []
    for prompt, response in tqdm(rows.select("prompt", "response").rows(), desc="reward model", unit="response"):
        ids = encode_conversation(tokenizer, user_message(prompt) + assistant_message(response))
        with torch.inference_mode():  # one by one: a score then cannot depend on its batch mates
            logits = scorer(torch.tensor([ids[:max_length]], device=scorer.device)).logits
        scores.append(logits.float().item())
    return scores

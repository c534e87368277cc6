from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from persyn.chat import encode_completion, with_chat_template
from persyn.errors import InputError
from persyn.learnability import LearnabilitySettings, LearnabilitySpeed, logprobs, score_learnability, scoring
from persyn.learnability.scoring import score_group, score_groups
from persyn.messages import as_text
from persyn.models import Student, forest, load_causal_lm, load_tokenizer
from persyn.models.forest import pack
from persyn.schemas import LEARNABILITY, check_table
from rehearsal.models import SIZES, random_model
from tests.support.tables import prompts_table, responses_table
from tests.support.tiny import CHATML, build_model

MEAN = LearnabilitySettings()
TEXTS = ["Say hello.", "Tell a story about a clock in the hall of a house.", "Q?", "Count to ten."]
RESPONSES = [
    "Hello there, friend.",
    "Tick.",
    "An answer of some length, with commas, and more words.",
    "1 2 3 4",
]


def naive(folder: str, prompt: str, response: str, finished: bool) -> float:
    """Eq. 1 as it is written: one sequence, log_softmax in fp32, a loop over the response tokens."""
    model, tokenizer = load_causal_lm(folder), with_chat_template(load_tokenizer(folder))
    prompt_ids, response_ids = encode_completion(tokenizer, prompt, response, finished)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([prompt_ids + response_ids])).logits[0].float(), dim=-1)
    steps = [logprobs[len(prompt_ids) + t - 1, token].item() for t, token in enumerate(response_ids)]
    return sum(steps) / len(steps)


def several_teachers(prompts: pl.DataFrame) -> pl.DataFrame:
    """Three teachers, each with the same responses to other prompts."""
    turned = [RESPONSES[shift:] + RESPONSES[:shift] for shift in range(3)]
    return pl.concat(responses_table(prompts, f"t{shift}", texts) for shift, texts in enumerate(turned))


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("template", [None, CHATML])
def test_equals_the_naive_loop_in_any_group_order_and_chunk(
    family: str, template: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_model(tmp_path / "m", family, template)
    prompts = prompts_table(TEXTS)
    responses, student = several_teachers(prompts), Student(model=folder, license="x")
    rows = responses.join(prompts, on="prompt_id").rows(named=True)
    expected = {(row["prompt_id"], row["teacher"]): naive(folder, row["prompt"], row["response"], True) for row in rows}
    assert max(expected.values()) - min(expected.values()) > 0.1, "the rows must differ for this test to mean anything"
    for batch_tokens, chunk, order in ((1, 1024, responses), (10_000, 1024, responses.reverse()), (60, 3, responses)):
        monkeypatch.setattr(logprobs, "LOGIT_CHUNK", chunk)
        table = score_learnability(
            prompts,
            order,
            student,
            MEAN,
            tmp_path / str(batch_tokens),
            speed=LearnabilitySpeed(batch_tokens=batch_tokens),
        )
        check_table(table, LEARNABILITY, "learnability")
        scores = {row[:2]: row[2] for row in table.iter_rows()}
        assert scores == pytest.approx(expected, abs=1e-4)


def test_a_score_is_made_once(base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, student = prompts_table(TEXTS), Student(model=base_model, license="x")
    responses = several_teachers(prompts)
    scored: list[list[int]] = []

    def counting(model: Any, groups: list[tuple[list[int], list[list[int]]]], *how: Any) -> Any:
        scored.extend(response for _, responses in groups for response in responses)
        return score_groups(model, groups, *how)

    first = score_learnability(prompts, responses.filter(teacher="t0"), student, MEAN, tmp_path)
    monkeypatch.setattr(scoring, "score_groups", counting)
    monkeypatch.setattr(scoring, "tree_is_exact", lambda *_: True)
    both = score_learnability(prompts, responses.filter(pl.col("teacher") != "t2"), student, MEAN, tmp_path)
    assert len(scored) == len(TEXTS), "only the new teacher's"
    assert both.filter(teacher="t0").equals(first)
    monkeypatch.setattr("persyn.learnability.load_causal_lm", lambda *_: pytest.fail("nothing is left to score"))
    assert score_learnability(prompts, responses.filter(teacher="t0"), student, MEAN, tmp_path).equals(first)


def test_a_model_that_ignores_the_tree_is_scored_row_by_row(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts, student = prompts_table(TEXTS), Student(model=base_model, license="x")
    expected = score_learnability(prompts, several_teachers(prompts), student, MEAN, tmp_path / "a")
    monkeypatch.setattr(forest, "forest_mask", lambda *_: None)
    table = score_learnability(prompts, several_teachers(prompts), student, MEAN, tmp_path / "b")
    assert "a shared prompt changes scores" in caplog.text
    assert table["learnability"].to_list() == pytest.approx(expected["learnability"].to_list(), abs=1e-5)


def test_a_student_whose_head_does_more_is_refused(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled(*where: Any) -> Any:
        model = load_causal_lm(*where)
        forward = model.forward

        def call(*arguments: Any, **named: Any) -> Any:
            output = forward(*arguments, **named)
            output.logits = output.logits * 0.1
            return output

        model.forward = call
        return model

    monkeypatch.setattr("persyn.learnability.load_causal_lm", scaled)
    prompts, student = prompts_table(TEXTS), Student(model=base_model, license="x")
    with pytest.raises(InputError, match="this kind of model cannot be a student yet"):
        score_learnability(prompts, several_teachers(prompts), student, MEAN, tmp_path)


def test_an_error_and_a_score_that_is_no_number_are_left_out(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts, student = prompts_table(TEXTS[:3]), Student(model=base_model, license="x")
    responses = responses_table(prompts[:2], "t", RESPONSES[:2]).vstack(
        responses_table(prompts[2:], "t", [""], "error")
    )
    scores = [[(0, 0, float("nan"))], [(1, 0, -1.0)]]
    monkeypatch.setattr(scoring, "score_groups", lambda *_: scores)
    monkeypatch.setattr(scoring, "tree_is_exact", lambda *_: True)
    assert score_learnability(prompts, responses, student, MEAN, tmp_path)["learnability"].to_list() == [-1.0]
    assert "1 scores are not finite and left out" in caplog.text


def slow_reference(folder: str, prompt: str, response: str, method: LearnabilitySettings) -> float:
    """The variants as they are defined: whole log-probability rows, ranks by sorting, windows by fresh passes."""
    model, tokenizer = load_causal_lm(folder), with_chat_template(load_tokenizer(folder))
    prompt_ids, response_ids = encode_completion(tokenizer, prompt, response, True)
    whole, first = prompt_ids + response_ids, len(prompt_ids)
    surprisal, ranks = 0.0, 0
    for t in range(first, len(whole)):
        begin = max(0, t - (t - first) % method.step - method.window) if method.method == "local" else 0
        with torch.no_grad():
            row = torch.log_softmax(model(torch.tensor([whole[begin:t]])).logits[0, -1].float(), dim=-1)
        surprisal -= row[whole[t]].item()
        ranks += min(row.argsort(descending=True).tolist().index(whole[t]) + 1, method.max_rank)
    return -ranks / surprisal if method.method == "rank_surprisal" else -surprisal / len(response_ids)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "method",
    [
        LearnabilitySettings(method="rank_surprisal", max_rank=50),
        LearnabilitySettings(method="local", step=3, window=5),
        LearnabilitySettings(method="local", step=4),
    ],
)
def test_the_variants_equal_their_slow_references(family: str, method: LearnabilitySettings, tmp_path: Path) -> None:
    folder = build_model(tmp_path / "m", family)
    prompts, student = prompts_table(TEXTS), Student(model=folder, license="x")
    for batch_tokens in (1, 100, 10_000):
        table = score_learnability(
            prompts,
            several_teachers(prompts),
            student,
            method,
            tmp_path / str(batch_tokens),
            speed=LearnabilitySpeed(batch_tokens=batch_tokens),
        )
        for row in table.join(prompts, on="prompt_id").filter(teacher="t1").iter_rows(named=True):
            response = RESPONSES[(TEXTS.index(as_text(row["prompt"])) + 1) % 4]
            assert row["learnability"] == pytest.approx(
                slow_reference(folder, row["prompt"], response, method), abs=1e-4
            )


def test_methods_have_scores_of_their_own_and_wrong_ones_are_named(base_model: str, tmp_path: Path) -> None:
    prompts, student = prompts_table(TEXTS), Student(model=base_model, license="x")
    methods = [
        MEAN,
        LearnabilitySettings(method="rank_surprisal"),
        LearnabilitySettings(method="rank_surprisal", max_rank=2),
        LearnabilitySettings(method="local", step=2, window=3),
    ]
    scores = [
        tuple(score_learnability(prompts, several_teachers(prompts), student, method, tmp_path)["learnability"])
        for method in methods
    ]
    assert len(set(scores)) == 4, "one store, and no method is served another's scores"
    with pytest.raises(InputError, match=r"learnability\.method is 'mean'; .*mean_logprob"):
        LearnabilitySettings.parse({"method": "mean"}, "learnability")
    with pytest.raises(InputError, match=r"learnability\.window is 0; .*1 or more"):
        LearnabilitySettings.parse({"window": 0}, "learnability")


def test_out_of_memory_halves_the_pass_and_goes_on(base_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = load_causal_lm(base_model), []
    responses = [[7, 8, 9], [10, 11], [12], [13, 14]]
    expected = score_group(model, [5, 6], responses, MEAN, 1000)

    def small(model: Any, trees: list[tuple[list[int], list[Any]]], *more: Any) -> Any:
        sizes.append(sum(len(branches) for _, branches in trees))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError
        return logprobs.token_scores(model, trees, *more)

    monkeypatch.setattr(scoring, "token_scores", small)
    limit = 1
    assert score_group(model, [5, 6], responses, MEAN, 1000) == pytest.approx(expected, abs=1e-5)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        score_group(model, [5, 6], responses, MEAN, 1000)


def stretching_model(kind: str) -> Any:
    """A tiny model whose passes of more than 32 tokens stretch its position encoding: as Phi-3, or by dynamic NTK."""
    sizes = SIZES | {"vocab_size": 400, "max_position_embeddings": 256, "pad_token_id": 0}
    if kind == "phi3":
        factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 4.0, 8.0, 16.0]}
        rope = {"rope_type": "longrope", "rope_theta": 10_000.0, **factors}
        sizes |= {"original_max_position_embeddings": 32, "rope_parameters": rope}
        return random_model("Phi3", sizes, seed=0).eval()
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
    return random_model("Llama", sizes | {"max_position_embeddings": 32, "rope_parameters": rope}, seed=0).eval()


def naive_score(kind: str, prompt: list[int], response: list[int], method: LearnabilitySettings) -> float:
    """A fresh model for every row (for `local`: every step), which reads it as training does: whole and alone."""
    steps = [(prompt, response)]
    if method.method == "local":
        whole, first = prompt + response, len(prompt)
        starts = range(first, len(whole), method.step)
        steps = [(whole[max(0, at - method.window) : at], whole[at : at + method.step]) for at in starts]
    total = 0.0
    for context, targets in steps:
        with torch.no_grad():
            logits = stretching_model(kind)(torch.tensor([context + targets])).logits[0, len(context) - 1 : -1]
        total -= torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum").item()
    return total / len(response)


@pytest.mark.parametrize("kind", ["phi3", "dynamic"])
@pytest.mark.parametrize("method", [MEAN, LearnabilitySettings(method="local", step=16, window=24)], ids=str)
def test_a_long_response_does_not_stretch_the_positions_of_its_neighbours(
    kind: str, method: LearnabilitySettings
) -> None:
    model, prompt = stretching_model(kind), [5, 6, 7, 8, 9, 10, 11, 12]
    generator = torch.Generator().manual_seed(0)
    responses = [
        torch.randint(10, 400, (length,), generator=generator).tolist() for length in (5, 24, 70, 23, 25, 26, 40, 12)
    ]
    expected = [naive_score(kind, prompt, response, method) for response in responses]
    for order in (range(8), reversed(range(8)), [2, 1, 6, 0]):
        shown = list(order)
        for batch_tokens in (1, 60, 10_000):
            scores = score_group(model, prompt, [responses[i] for i in shown], method, batch_tokens)
            assert scores == pytest.approx([expected[i] for i in shown], abs=1e-4)
    assert logprobs.stretch_length(model) == 32


def test_other_models_are_read_in_one_pass(base_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(base_model)
    monkeypatch.setattr(scoring, "forget_stretch", lambda *_: pytest.fail("it has no stretch"))
    assert logprobs.stretch_length(model) is None
    assert len(score_group(model, [5, 6], [[7] * 2000, [8]], MEAN, 10_000)) == 2


@pytest.mark.parametrize("budget", [1, 20, 35, 60, 1000])
def test_passes_hold_every_branch_once_within_the_budget(budget: int) -> None:
    trees = [(10, [5, 20, 1, 13, 8]), (1, [4, 4, 4]), (30, [2]), (0, [7, 9]), (2, [])]
    passes = pack(trees, budget)
    every = [(tree, branch) for tree, (_, lengths) in enumerate(trees) for branch in range(len(lengths))]
    assert sorted(branch for part in passes for branch in part) == every
    for part in passes:
        shared = sum(trees[tree][0] for tree in {tree for tree, _ in part})
        assert len(part) == 1 or shared + sum(trees[tree][1][branch] for tree, branch in part) <= budget
        assert [tree for tree, _ in part] == sorted(tree for tree, _ in part)


def test_a_tree_is_split_only_where_its_shared_tokens_are_few() -> None:
    assert pack([(10, [40]), (10, [30, 30])], 100) == [[(0, 0)], [(1, 0), (1, 1)]], "10 of the 50 that are left"
    assert pack([(1, [40]), (1, [30, 30])], 100) == [[(0, 0), (1, 0)], [(1, 1)]]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_a_forest_scores_as_its_rows_do(family: str, batch_tokens: int, tmp_path: Path) -> None:
    model = load_causal_lm(build_model(tmp_path / "m", family))
    generator = torch.Generator().manual_seed(0)
    groups: list[tuple[list[int], list[list[int]]]] = [
        ([5 + n, 6, *range(20, 20 + n)], [torch.randint(5, 200, (size,), generator=generator).tolist() for size in row])
        for n, row in enumerate([(3, 1, 17), (9,), (1, 1), (30, 2, 4, 6)])
    ]
    scores = {(n, i): score for part in score_groups(model, groups, MEAN, batch_tokens) for n, i, score in part}
    for n, (prompt, responses) in enumerate(groups):
        for i, response in enumerate(responses):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].float()
            expected = -torch.nn.functional.cross_entropy(logits, torch.tensor(response)).item()
            assert scores.pop((n, i)) == pytest.approx(expected, abs=1e-4)
    assert not scores


@pytest.mark.parametrize("length", [1024, 2048])
def test_a_block_mask_is_the_one_that_torch_makes(length: int) -> None:
    nodes = torch.randint(0, 30, (length,), generator=torch.Generator().manual_seed(length)).sort().values
    follows, positions = nodes // 5 * 5, torch.arange(length)

    def allowed(query: Any, key: Any) -> Any:
        return ((nodes[query] == nodes[key]) | (follows[query] == nodes[key])) & (positions[query] >= positions[key])

    ours = forest._block_mask(allowed, positions)
    theirs = create_block_mask(lambda _, __, query, key: allowed(query, key), None, None, length, length, "cpu")
    for kind in ("kv", "full_kv", "q", "full_q"):
        numbers, indices = (getattr(ours, f"{kind}_{part}")[0, 0] for part in ("num_blocks", "indices"))
        assert torch.equal(numbers, getattr(theirs, f"{kind}_num_blocks")[0, 0])
        for number, mine, expected in zip(numbers, indices, getattr(theirs, f"{kind}_indices")[0, 0], strict=True):
            assert torch.equal(mine[:number], expected[:number])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_flex_attention_scores_as_the_rows_do(tmp_path: Path) -> None:
    model = load_causal_lm(build_model(tmp_path / "m", "gemma3", head_dim=16), dtype=torch.float32)
    forest.use_block_masks(model)
    assert model.config._attn_implementation == "flex_attention"
    groups = [([5, 6, 7], [[8] * 3, [9] * 40]), ([5], [[10, 11]])]
    scores = {(n, i): score for part in score_groups(model, groups, MEAN, 4096) for n, i, score in part}
    model.set_attn_implementation("sdpa")
    for (n, i), score in scores.items():
        assert score == pytest.approx(score_group(model, groups[n][0], [groups[n][1][i]], MEAN, 1)[0], abs=1e-3)


def test_a_cut_response_is_scored_without_the_end_of_turn(base_model: str, tmp_path: Path) -> None:
    prompts = prompts_table(TEXTS[:1])
    student = Student(model=base_model, license="x")
    answers = [responses_table(prompts, "t", RESPONSES[:1], finish) for finish in ("stop", "length")]
    stop, length = (score_learnability(prompts, answer, student, MEAN, tmp_path) for answer in answers)
    assert stop["num_tokens"].item() == length["num_tokens"].item() + 1
    assert length["learnability"].item() == pytest.approx(naive(base_model, TEXTS[0], RESPONSES[0], False), abs=1e-4)


def test_too_long_is_scored_on_its_first_tokens_and_flagged(base_model: str, tmp_path: Path) -> None:
    prompts = prompts_table(TEXTS[:1])
    tokenizer = with_chat_template(load_tokenizer(base_model))
    prompt_ids, response_ids = encode_completion(tokenizer, TEXTS[0], RESPONSES[0], True)
    student = Student(model=base_model, license="x", max_length=len(prompt_ids) + 3)
    row = score_learnability(prompts, responses_table(prompts, "t", RESPONSES[:1]), student, MEAN, tmp_path).row(
        0, named=True
    )
    assert row["truncated"]
    assert row["num_tokens"] == 3
    [expected] = score_group(load_causal_lm(base_model), prompt_ids, [response_ids[:3]], MEAN, 1)
    assert row["learnability"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", ["mean_logprob", "rank_surprisal", "local"])
def test_only_the_first_max_tokens_are_scored_under_the_key_of_a_row_that_max_length_cuts(
    method: Any, base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = prompts_table(TEXTS[:1])
    prompt_ids, response_ids = encode_completion(
        with_chat_template(load_tokenizer(base_model)), TEXTS[0], RESPONSES[0], True
    )
    short = Student(model=base_model, license="x", max_length=len(prompt_ids) + 3)
    settings = LearnabilitySettings(method=method, step=2, window=3)
    responses = responses_table(prompts, "t", RESPONSES[:1])
    cut = score_learnability(prompts, responses, short, settings, tmp_path)
    monkeypatch.setattr("persyn.learnability.load_causal_lm", lambda *_: pytest.fail("its score is in the store"))
    whole, first = Student(model=base_model, license="x"), settings.changed(max_tokens=3)
    with caplog.at_level("INFO", "persyn"):
        assert score_learnability(prompts, responses, whole, first, tmp_path).equals(cut)
    assert "1 of 1 responses are scored on their first tokens only" in caplog.text
    assert cut["truncated"].item()
    assert score_learnability(prompts, responses, short, settings.changed(max_tokens=99), tmp_path).equals(cut)
    monkeypatch.undo()
    exact = settings.changed(max_tokens=len(response_ids))
    table = score_learnability(prompts, responses, whole, exact, tmp_path)
    assert not table["truncated"].item()
    assert table.equals(score_learnability(prompts, responses, whole, settings, tmp_path))


def test_what_cannot_be_scored_is_named(base_model: str, tmp_path: Path) -> None:
    prompts = prompts_table(TEXTS[:1])
    student = Student(model=base_model, license="x", max_length=4)
    with pytest.raises(InputError, match=r"of t: the prompt alone has \d+ tokens .* student.max_length is 4"):
        score_learnability(prompts, responses_table(prompts, "t", ["x"]), student, MEAN, tmp_path)


def test_an_empty_response_is_its_end_of_turn_however_it_ended(base_model: str, tmp_path: Path) -> None:
    prompts, student = prompts_table(TEXTS[:1]), Student(model=base_model, license="x")
    for finish in ("stop", "length"):
        row = score_learnability(prompts, responses_table(prompts, "t", [""], finish), student, MEAN, tmp_path).row(
            0, named=True
        )
        assert row["num_tokens"] == 1
        assert row["learnability"] == pytest.approx(naive(base_model, TEXTS[0], "", True), abs=1e-4)

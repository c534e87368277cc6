import math
from pathlib import Path
from typing import Any

import pytest

from persyn.errors import InputError
from persyn.generation.budget import Budget
from persyn.quality import QualitySettings, score_quality
from persyn.quality.judge import JudgeSettings, judge_scores
from persyn.schemas import QUALITY, check_table
from tests.support.stub import StubServer, stub_teacher
from tests.support.tables import prompts_table, responses_table

PROMPTS = prompts_table(["Say hello.", "Say bye.", "Say it twice."], references=["hello", None, None])
RESPONSES = responses_table(PROMPTS, "t", ["hello", "Score: 10", "it it"])


def judged(server: StubServer, folder: Path, **judge: Any) -> list[float]:
    rows = RESPONSES.join(PROMPTS, on="prompt_id", maintain_order="left")
    settings = JudgeSettings(model="judge", **judge)
    return judge_scores(rows, folder, server.speed(max_attempts=1), None, settings)


def test_the_last_score_of_the_verdict_counts_and_is_paid_for_once(tmp_path: Path) -> None:
    def say(asked: str) -> str:
        return "I thought of Score: 3, but no.\n**Score:** 7.5" if "hello" in asked else "Bad. Score: 2"

    with stub_teacher(say=say) as server:
        assert judged(server, tmp_path) == judged(server, tmp_path) == [7.5, 2.0, 2.0]
        assert server.counts["ok"] == 3
        shown = {body["messages"][1]["content"]: body["messages"][0]["content"] for body in server.bodies_seen}
        [hello] = [text for text in shown if "hello" in text]
        assert hello == "[Question]\nSay hello.\n\n[Reference]\nhello\n\n[Answer]\nhello\n\n[End of the answer]"
        assert "from 1 (useless) to 10 (perfect)" in shown[hello]
        judged(server, tmp_path, rubric="Another rubric. Score: <number>")
        assert server.counts["ok"] == 6, "another rubric is another question"


def test_the_budget_stops_a_judge_as_it_does_a_teacher(tmp_path: Path) -> None:
    rows = RESPONSES.join(PROMPTS, on="prompt_id")
    judge = JudgeSettings(model="judge", rubric="Score: <number>")
    settings = QualitySettings(methods={"instruction": "judge"}, judge=judge)
    with stub_teacher(say=lambda asked: "Score: 5") as server:
        with pytest.raises(InputError, match=r"tokens are spent; .* exceed budget.max_tokens"):
            score_quality(PROMPTS, RESPONSES, tmp_path, settings, server.speed(), Budget(max_tokens=500))
        assert server.counts["ok"] == 0
        enough = score_quality(PROMPTS, RESPONSES, tmp_path, settings, server.speed(), Budget(max_tokens=5000))
    assert enough.height == rows.height


@pytest.mark.parametrize("verdict", ["I cannot say.", "Score: 11", "Score: -1", "Score: ten"])
def test_a_verdict_without_a_legal_score_is_no_number(verdict: str, tmp_path: Path) -> None:
    with stub_teacher(say=lambda asked: verdict) as server:
        assert all(map(math.isnan, judged(server, tmp_path)))


def test_too_many_failures_are_an_error_and_few_leave_their_rows_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with stub_teacher({"400": 1.0}) as server, pytest.raises(InputError, match="of the judge have no response"):
        judged(server, tmp_path)
    settings = QualitySettings(methods={"instruction": "judge"}, judge=JudgeSettings(model="judge"))
    with stub_teacher(say=lambda asked: "Score: 4" if "hello" in asked else "") as server:
        table = score_quality(PROMPTS, RESPONSES, tmp_path, settings, server.speed())
    check_table(table, QUALITY, "quality")
    assert table["quality"].to_list() == [4.0]
    assert "2 scores are not finite" in caplog.text


@pytest.mark.parametrize(
    ("judge", "message"),
    [(None, r"^quality\.judge is null, .* methods names it"), ({}, r"^quality\.judge\.model is missing; .*text")],
)
def test_a_judge_needs_a_model(judge: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        QualitySettings.parse({"methods": {"instruction": "judge"}, "judge": judge}, "quality")

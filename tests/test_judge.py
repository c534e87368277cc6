import json
import math
from pathlib import Path
from typing import Any

import pytest

from persyn.errors import InputError
from persyn.generation.budget import Budget
from persyn.quality import QualitySettings, QualitySpeed, score_quality
from persyn.quality.judge import JudgeSettings, judge_scores
from persyn.schemas import QUALITY, check_table
from tests.support.stub import StubServer, stub_teacher
from tests.support.tables import prompts_table, responses_table
from tests.support.verdicts import agreement

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
            score_quality(PROMPTS, RESPONSES, tmp_path, settings, QualitySpeed(server.speed()), Budget(max_tokens=500))
        assert server.counts["ok"] == 0
        enough = score_quality(
            PROMPTS, RESPONSES, tmp_path, settings, QualitySpeed(server.speed()), Budget(max_tokens=5000)
        )
    assert enough.height == rows.height


def test_every_form_of_a_score_is_read() -> None:
    wrong = [(name, stated, read) for name, stated, read in agreement() if stated != read]
    assert not wrong
    assert len(agreement()) >= 34


def test_an_unreadable_verdict_is_asked_for_once_more_and_paid_for_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def say(asked: str) -> str:
        return "Score: 4" if "[Reminder]" in asked or "hello" in asked else "I cannot say."

    with stub_teacher(say=say) as server:
        for _ in range(2):
            assert judged(server, tmp_path) == [4.0, 4.0, 4.0]
        assert server.counts["ok"] == 5, "three questions, two of them twice, and nothing when it runs again"
        reminders = [text for body in server.bodies_seen if "[Reminder]" in (text := body["messages"][-1]["content"])]
    assert len(reminders) == 2
    assert "`Score: <number>` from 1 (useless) to 10 (perfect)" in reminders[0]
    assert "0 of 3 verdicts of the judge are missing" in caplog.text
    assert "2 were asked for again" in caplog.text


@pytest.mark.parametrize("verdict", ["I cannot say.", "Score: 11", "Score: -1", "Score: ten"])
def test_verdicts_without_a_score_stop_the_stage(verdict: str, tmp_path: Path) -> None:
    with stub_teacher(say=lambda asked: verdict) as server:
        message = (
            r"^3 of 3 verdicts .*3 state no score from 1 to 10; 3 were asked for again.*judge.max_error_share 0.05;"
        )
        for _ in range(2):
            with pytest.raises(InputError, match=message):
                judged(server, tmp_path)
        assert server.counts["ok"] == 6
        assert all(map(math.isnan, judged(server, tmp_path, max_error_share=1.0)))


def test_a_structured_judge_is_held_to_a_schema(tmp_path: Path) -> None:
    with stub_teacher(say=lambda asked: json.dumps({"reason": "a score: 10 would be perfect", "score": 6})) as server:
        assert judged(server, tmp_path, structured=True) == [6.0, 6.0, 6.0]
        body = server.bodies_seen[0]
        judged(server, tmp_path)
        assert server.counts["ok"] == 6, "another form of reply is another question"
        assert "response_format" not in server.bodies_seen[-1]
    schema = body["response_format"]["json_schema"]
    assert schema["strict"]
    assert schema["schema"]["required"] == ["reason", "score"]
    assert "Score: <number>" not in body["messages"][0]["content"]
    assert '"score": <number>' in body["messages"][0]["content"]
    own = JudgeSettings(model="judge", rubric="Grade it.", structured=True).asked_as.system or ""
    assert own.startswith("Grade it.\n\nReply with a JSON object")


def test_what_a_judge_took_is_counted(tmp_path: Path) -> None:
    settings = QualitySettings(methods={"instruction": "judge"}, judge=JudgeSettings(model="judge"))
    with stub_teacher(say=lambda asked: "Score: 4" if "[Reminder]" in asked else "Well.") as server:
        seen: list[dict[str, Any]] = []
        for _ in range(2):
            counts: dict[str, Any] = {}
            score_quality(PROMPTS, RESPONSES, tmp_path, settings, QualitySpeed(server.speed()), counts=counts)
            seen.append(counts["judge"])
    assert seen[0] == seen[1], "a verdict found in the store was paid for once"
    assert {name: seen[0][name] for name in ("calls", "asked_again", "failed", "unreadable")} == {
        "calls": 6,
        "asked_again": 3,
        "failed": 0,
        "unreadable": 0,
    }
    assert seen[0]["prompt_tokens"] > 6
    assert seen[0]["response_tokens"] > 6


def test_too_many_failures_are_an_error_and_few_leave_their_rows_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with stub_teacher({"400": 1.0}) as server, pytest.raises(InputError, match=r"^3 of 3 .*3 calls failed, 0 state no"):
        judged(server, tmp_path)
    lenient = JudgeSettings(model="judge", max_error_share=0.7)
    settings = QualitySettings(methods={"instruction": "judge"}, judge=lenient)
    with stub_teacher(say=lambda asked: "Score: 4" if "hello" in asked else "Who knows") as server:
        table = score_quality(PROMPTS, RESPONSES, tmp_path, settings, QualitySpeed(server.speed()))
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

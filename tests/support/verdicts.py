"""The forms in which judges state a score. `python -m tests.support.verdicts` prints what is read of each."""

import math

from persyn.quality.verdicts import read_verdict

REPLIES: dict[str, tuple[str, float | None]] = {
    "as the rubric asks": ("The answer is right.\nScore: 8", 8),
    "decimal": ("Score: 7.5", 7.5),
    "decimal comma": ("Score: 7,5", 7.5),
    "bold label": ("**Score:** 8", 8),
    "bold label, sign outside": ("**Score**: 8", 8),
    "bold line": ("**Score: 8**", 8),
    "bold number": ("Score: **8**", 8),
    "heading": ("## Score: 8", 8),
    "heading, number below": ("### Score\n\n8", 8),
    "code": ("`Score: 8`", 8),
    "list item": ("- Clarity is good\n- Score: 8", 8),
    "upper case": ("SCORE: 8", 8),
    "equals": ("score = 8", 8),
    "dash": ("Final score - 8", 8),
    "angle brackets": ("Score: <8>", 8),
    "square brackets": ("Score: [8]", 8),
    "round brackets": ("Score: (8)", 8),
    "double brackets": ("I compared both.\n[[8]]", 8),
    "named double brackets": ("Rating: [[8]]", 8),
    "scale in the label": ("Score (1-10): 8", 8),
    "bare scale in the label": ("Score 1-10: 8", 8),
    "slash": ("8/10", 8),
    "label and slash": ("Score: 8/10", 8),
    "out of": ("I would say 7 out of 10.", 7),
    "label and out of": ("Overall: 7 out of 10", 7),
    "rating": ("Rating: 8", 8),
    "grade": ("Grade: 8", 8),
    "tag": ("<score>7</score>", 7),
    "tag after a reason": ("<reason>Mostly right.</reason>\n<score>7</score>", 7),
    "json": ('{"score": 7}', 7),
    "json of text": ('{"reason": "a score: 10 would be perfect", "score": "7"}', 7),
    "json in a fence": ('Here it is:\n```json\n{\n  "reason": "Fine.",\n  "score": 7\n}\n```', 7),
    "json, score first": ('{"score": 3, "reason": "a perfect answer gets Score: 10"}', 3),
    "boxed": (r"Score: $\boxed{8}$", 8),
    "fullwidth": ("Score\uff1a\uff18", 8),
    "fullwidth in brackets": ("\u3010\u8bc4\u5206\u3011Score\uff1a\uff19", 9),
    "sentence": ("The score is 8.", 8),
    "a score of": ("I give this answer a score of 6.", 6),
    "rated": ("I would rate this answer 6.", 6),
    "number alone": ("8", 8),
    "number alone below": ("Good, but one step is missing.\n\n**6**", 6),
    "table row": ("| Score | 8 |", 8),
    "remark in brackets": ("Score: 3 (it misses the point; a score: 10 would be perfect)", 3),
    "remark after dots": ("Score: 3 ... (a score: 10 would be perfect)", 3),
    "supposed on the same line": ("Score: 3. A score of 10 would need a proof.", 3),
    "supposed on a line below": ("Score: 3\nA score of 10 would need a proof.", 3),
    "changed mind": ("At first Score: 3, but it is right after all.\nScore: 9", 9),
    "changed mind on one line": ("I thought of score: 3, no. Score: 9", 9),
    "words after it": ("Score: 8, because the last step is missing.", 8),
    "text below": ("Score: 8\n\nThe answer names 3 of 4 causes and is clear.", 8),
    "parts and the whole": ("Accuracy: 9\nClarity: 6\nOverall score: 7", 7),
    "confidence below": ("Score: 8\nConfidence: 9/10", 8),
    "the scale below": ("Score: 8\nNote: 10/10 is only for perfect answers.", 8),
    "rubric repeated": ("I score from 1 (useless) to 10 (perfect).\nScore: 4", 4),
    "number alone in brackets": ("[8]", 8),
    "points out of": ("8 points out of 10", 8),
    "points without a blank": ("Score: 8pts", 8),
    "formula": (r"Score: \(8\)", 8),
    "sum": ("Score: 10 - 2 = 8", 8),
    "about": ("Score: approximately 8", 8),
    "should be": ("The score should be 8.", 8),
    "supposed in a later sentence": ("Score: 8. If it had sources, score: 10.", 8),
    "German": ("Bewertung: 8", 8),
    "Spanish": ("Puntuaci\xf3n: 8/10", 8),
    "Italian": ("Voto: 8", 8),
    "Russian": ("\u041e\u0446\u0435\u043d\u043a\u0430: 8", 8),
    "Chinese": ("\u6700\u7ec8\u8bc4\u5206\uff1a8", 8),
    "Chinese points": ("8\u5206", 8),
    "Japanese": ("\u30b9\u30b3\u30a2: 8", 8),
    "Korean": ("\uc810\uc218: 8", 8),
    "a range in words": ("Score: 7 to 8", None),
    "a range of shares": ("7-8/10", None),
    "a choice": ("Score: 8 or 9", None),
    "a choice of shares": ("Score: 8/10 or 9/10", None),
    "the rubric only": ("score: 1 (useless) to 10 (perfect)", None),
    "json of a truth": ('{"score": true}', None),
    "none": ("I cannot say.", None),
    "too high": ("Score: 11", None),
    "too low": ("Score: -1", None),
    "in words": ("Score: ten", None),
    "percent": ("Score: 80%", None),
    "another scale": ("Score: 4/5", None),
    "a range": ("Score: 7-8", None),
    "a count in the reason": ("The answer names 3 causes in 2 paragraphs.", None),
    "empty": ("", None),
}
"""Name -> reply to a rubric from 1 to 10, and its score (None: it cannot be read)."""
CUT: dict[str, tuple[str, float | None]] = {
    "cut in the number": ("It is right.\nScore: 1", None),
    "cut after the score": ("Score: 8\nThe answer is", 8),
    "cut in the reason": ("The question asks for", None),
}
"""The same, of replies that were cut at max_tokens."""


def agreement() -> list[tuple[str, float | None, float | None]]:
    """Name, the score that a reply states, and the score read of it."""
    cases = [(name, *case, False) for name, case in REPLIES.items()]
    cases += [(name, *case, True) for name, case in CUT.items()]
    read = [(name, stated, read_verdict(reply, 1, 10, cut=cut)) for name, reply, stated, cut in cases]
    return [(name, stated, None if math.isnan(score) else score) for name, stated, score in read]


if __name__ == "__main__":
    table = agreement()
    for name, stated, read in table:
        print(f"{'same ' if stated == read else 'WRONG'}  {name}: {stated}, read {read}")  # noqa: T201
    print(f"{sum(stated == read for _, stated, read in table)} of {len(table)} read as stated")  # noqa: T201

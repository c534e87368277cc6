"""The paper's setting through the real router rule and ledger, with drawn strengths and lengths; no model is asked.

python -m benchmarks.simulation
"""

import time
from typing import Any

import numpy as np
import polars as pl

from persyn.cost import build_ledger
from persyn.inspection.terminal import plain, rows_table
from persyn.messages import user_message
from persyn.routes import Persyn, Pool, build_routes
from persyn.schemas import PROMPTS, RESPONSES, REWARDS, check_table

NUM_TEACHERS, NUM_PROMPTS, NUM_PARALLEL = 19, 50_000, 2_500


def simulate(num_teachers: int, num_prompts: int, num_parallel: int, seed: int = 0) -> dict[str, Any]:
    """The ledger of route-then-generate by the rule persyn.

    Strengths are normal, around a mean of each teacher's own. Lengths are log-normal around a median of each teacher's
    own, 100 to 1,000 tokens; prompts have 120 tokens.
    """
    draw = np.random.default_rng(seed)
    teachers = [f"teacher-{number:02}" for number in range(num_teachers)]
    identities = [f"{number:016x}" for number in range(num_prompts)]
    asked = [user_message(identity) for identity in identities]
    table = pl.DataFrame({"prompt_id": identities, "prompt": asked, "source": "drawn", "license": "none"})
    prompts = table.with_columns(
        domain=pl.lit("instruction"), reference=pl.lit(None), parallel=pl.int_range(num_prompts) < num_parallel
    )
    prompts = check_table(prompts.select(PROMPTS.names()).cast(PROMPTS), PROMPTS, "prompts")
    medians = np.exp(draw.uniform(np.log(100), np.log(1000), num_teachers))
    strengths = draw.normal(size=num_teachers) + draw.normal(size=(num_prompts, num_teachers))
    lengths = np.ceil(medians * draw.lognormal(sigma=0.7, size=(num_prompts, num_teachers))).astype(int)

    def answers(rows: np.ndarray, columns: np.ndarray) -> pl.DataFrame:
        found = {
            "prompt_id": [identities[row] for row in rows],
            "teacher": [teachers[column] for column in columns],
            "response": "",
            "reasoning": None,
            "finish_reason": "stop",
            "num_prompt_tokens": 120,
            "num_response_tokens": lengths[rows, columns],
        }
        return pl.DataFrame(found).cast(RESPONSES)

    pool = Pool(teachers, REWARDS.to_frame(), lambda asked, method: strengths, {})
    routes = build_routes(prompts, pool, Persyn(rule="persyn"))
    chosen = np.array([teachers.index(name) for name in routes["teacher"]])
    routed = answers(np.arange(num_prompts), chosen)
    parallel = answers(*(grid.ravel() for grid in np.indices((num_parallel, num_teachers))))
    return build_ledger(prompts, parallel, {"persyn": routed})


def main() -> None:
    """Print one row a way of counting."""
    start = time.perf_counter()
    ledger = simulate(NUM_TEACHERS, NUM_PROMPTS, NUM_PARALLEL)
    select, spent = ledger["generate_then_select"], ledger["total"]["spent"]
    again = {name: spent[name] + ledger["routed"]["persyn"]["cached"][name] for name in spent}
    rows = [
        [title, f"{use['calls']:,}", f"{use['response_tokens']:,}"]
        + [f"{select[name] / use[name]:.2f}" for name in ("calls", "response_tokens")]
        for title, use in (
            ("generate then select", select),
            ("route then generate, as the paper counts: parallel prompts are answered again", again),
            ("route then generate here: their answers are used again", spent),
        )
    ]
    title = f"{NUM_TEACHERS} teachers, {NUM_PROMPTS:,} prompts, {NUM_PARALLEL:,} parallel"
    columns = ["", "calls", "response tokens", "times fewer calls", "times fewer tokens"]
    print(plain(rows_table(title, columns, rows, columns[1:])))  # noqa: T201
    print(f"\n{time.perf_counter() - start:.1f} s")  # noqa: T201


if __name__ == "__main__":
    main()

"""One teacher's responses -> their quality."""

from persyn.generation.budget import Budget
from persyn.quality import score_quality
from persyn.schemas import PROMPTS, QUALITY, RESPONSES, read_table, write_table
from persyn.store import store_folder
from stages import read_params, read_speed, run


def main(prompts: str, responses: str, out: str) -> None:
    params = read_params("quality", score_quality)
    tables = read_table(prompts, PROMPTS), read_table(responses, RESPONSES)
    speed, budget = read_speed("judge", "openai"), Budget(**read_params("budget", Budget))
    write_table(score_quality(*tables, store_folder(), speed, budget, **params), out, QUALITY)


if __name__ == "__main__":
    run(main)

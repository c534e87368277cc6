"""Raw sources -> prompts, and the counts of what was dropped."""

from pathlib import Path

from persyn.files import write_json
from persyn.prompts import build_prompts
from persyn.schemas import PROMPTS, write_table
from stages import read_params, run


def main(raw: str, out: str, metrics: str) -> None:
    prompts, counts = build_prompts(Path(raw), **read_params("prompts", build_prompts))
    write_table(prompts, out, PROMPTS)
    write_json(counts, metrics)


if __name__ == "__main__":
    run(main)

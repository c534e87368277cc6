"""Raw sources -> prompts, and the counts of what was dropped."""

from pathlib import Path

from persyn.files import write_json
from persyn.project.params import read_params
from persyn.prompts import build_prompts
from persyn.schemas import PROMPTS, write_table
from persyn.verifiers import check_references
from stages import run


def main(raw: str, out: str, metrics: str) -> None:
    params = read_params()
    prompts, counts = build_prompts(Path(raw), params.prompts)
    check_references(prompts, params.quality.methods)
    write_table(prompts, out, PROMPTS)
    write_json(counts, metrics)


if __name__ == "__main__":
    run(main)

"""Raw sources -> prompts, and the counts of what was dropped."""

import shutil
from pathlib import Path

from persyn.files import write_json
from persyn.project.params import read_params
from persyn.prompts import sink_prompts
from persyn.schemas import sink_table
from persyn.verifiers import check_references
from stages import run


def main(raw: str, out: str, metrics: str) -> None:
    params, parts = read_params(), Path(f"{out}.parts")
    shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed
    parts.mkdir(parents=True)
    try:
        prompts, counts = sink_prompts(Path(raw), params.prompts, parts)
        check_references(prompts, params.quality.methods)
        sink_table(prompts, out)
    finally:
        shutil.rmtree(parts)
    write_json(counts, metrics)


if __name__ == "__main__":
    run(main)

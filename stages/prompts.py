"""Raw sources -> prompts, and the counts of what was dropped."""

from pathlib import Path

from persyn.files import write_json
from persyn.project.params import read_params
from persyn.prompts import sink_prompts
from persyn.schemas import parts_folder, sink_table
from persyn.verifiers import check_references
from stages import run


def main(raw: str, out: str, metrics: str) -> None:
    params = read_params()
    with parts_folder(out) as parts:
        prompts, counts = sink_prompts(Path(raw), params.prompts, parts)
        check_references(prompts, params.quality.methods)
        sink_table(prompts, out)
    write_json(counts, metrics)


if __name__ == "__main__":
    run(main)

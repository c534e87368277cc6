"""Results of the other stages -> the tables that `dvc plots` draws."""

from persyn.files import read_json, write_json, write_text
from persyn.plots import build_plots, plot_entries
from persyn.project.params import read_params
from persyn.rewards import with_student
from persyn.schemas import DEFECTS, LEARNABILITY, PARALLEL, PROMPTS, QUALITY, REWARDS, read_folder, read_table
from stages import run


def main(*paths: str) -> None:
    prompts, quality, learnability, defects, rewards, allocation, evaluation, *others = paths
    beside, comparison, cost, out, plots = others
    params = read_params()
    teachers, strategies = list(params.pool), list(params.strategies)
    scored, found = read_folder(quality, list(params.teachers), QUALITY), read_table(defects, DEFECTS)
    own, policies = scored.pop(params.asked_student, None), params.dataset.over(params.defects)
    asked = with_student(read_table(prompts, PROMPTS, PARALLEL), own, found, policies, params.quality.scales)
    learned = read_folder(learnability, teachers, LEARNABILITY)
    scores = scored, learned, found, teachers, policies, params.anchored, asked
    shares, values = [{s: read_json(f"{folder}/{s}.json") for s in strategies} for folder in (allocation, evaluation)]
    values |= read_json(beside)
    made = read_table(rewards, REWARDS), shares, values, read_json(comparison), read_json(cost)
    for name, curve in build_plots(scores, params.rewards, *made).items():
        write_text(curve.write_csv(), f"{out}/{name}.csv")
    write_json(plot_entries(teachers, strategies), plots)


if __name__ == "__main__":
    run(main)

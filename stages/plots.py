"""What the other stages measured -> the tables that `dvc plots` draws."""

from persyn.defects import Policies
from persyn.files import write_json, write_text
from persyn.plots import build_plots, plot_entries
from persyn.schemas import DEFECTS, LEARNABILITY, QUALITY, REWARDS, read_folder, read_table
from stages import read_json, read_params, run


def main(*paths: str) -> None:
    quality, learnability, defects, rewards, allocation, evaluation, comparison, cost, out, plots = paths
    entries, strategies = read_params("teachers"), list(read_params("strategies"))
    teachers = list(entries)
    anchored = [name for name, teacher in entries.items() if teacher.get("anchors") is not None]
    scored = read_folder(quality, teachers, QUALITY), read_folder(learnability, teachers, LEARNABILITY)
    scores = *scored, read_table(defects, DEFECTS), teachers, Policies(**read_params("defects", Policies)), anchored
    shares, values = [{s: read_json(f"{folder}/{s}.json") for s in strategies} for folder in (allocation, evaluation)]
    weighed = read_params("rewards"), read_table(rewards, REWARDS)
    for name, curve in build_plots(scores, *weighed, shares, values, read_json(comparison), read_json(cost)).items():
        write_text(curve.write_csv(), f"{out}/{name}.csv")
    write_json(plot_entries(teachers, strategies), plots)


if __name__ == "__main__":
    run(main)

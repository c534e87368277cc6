"""Run recipes: `python -m science` runs all of recipes.yaml on the micro-world, `python -m science alpha` one."""

import argparse
import os
import sys
from pathlib import Path

from persyn.comparison import compare_seeds
from persyn.errors import InputError, nearest, printable
from science.project import ROOT, WORK, build_world, load_profile, needs_world, profile_name, raw_folder
from science.recipes import collect, load_recipes, plan_jobs, run_jobs
from science.report import write_report
from science.studies import SECOND, STUDIES


def main() -> None:
    """Run the named recipes and studies, then print and write one table and one plot for each."""
    parser = argparse.ArgumentParser(prog="python -m science", description=__doc__)
    parser.add_argument("names", nargs="*", help="recipes or studies; all if none is named")
    parser.add_argument("--profile", default=ROOT / "profiles/micro.yaml", type=Path, help="parameters to start from")
    parser.add_argument("--recipes", default=ROOT / "science/recipes.yaml", type=Path)
    parser.add_argument("--seeds", default=3, type=int, help="how many, from 0")
    parser.add_argument("--workers", default=2, type=int, help="variants that run at once, each on one thread")
    parser.add_argument("--out", type=Path, help="where the tables go; metrics/science/<profile> if not given")
    asked = parser.parse_args()
    recipes, params = load_recipes(asked.recipes), load_profile(asked.profile)
    names = asked.names or [*recipes, *STUDIES]
    for name in names:
        if name not in recipes and name not in STUDIES:
            raise InputError(f"there is no recipe {name}{nearest(name, [*recipes, *STUDIES])}")
    profile, seeds = profile_name(asked.profile), range(asked.seeds)
    base = next(iter(recipes))  # studies read projects of the first recipe; `students` those of a second too
    read = {base} if set(names) & set(STUDIES) else set()
    read |= {SECOND} if "students" in names else set()
    needed = [name for name in recipes if name in {*names, *read}]
    jobs = plan_jobs(profile, params, {name: recipes[name] for name in needed}, seeds, raw_folder(asked.profile))
    run_jobs(jobs, asked.workers, build_world if needs_world(params) else lambda seed: None)
    out = asked.out or ROOT / "metrics/science" / profile
    for name in names:
        own = [job for job in jobs if job.recipe == name]
        if name in recipes:
            question, axis, comparison = recipes[name].question, recipes[name].axis, collect(recipes[name], own)
        else:
            study, question, reference = STUDIES[name]
            by_seed = [study(WORK / f"{profile}/{base}-0-{seed}", seed) for seed in seeds]
            comparison = compare_seeds({key: [found[key] for found in by_seed] for key in by_seed[0]}, reference)
            axis = "variant"
        command = f"python -m science {name} --profile {os.path.relpath(asked.profile, ROOT)} --seeds {asked.seeds}"
        print(write_report(name, question, axis, comparison, command, out))  # noqa: T201


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {printable(str(error))}")

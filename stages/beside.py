"""The student before any tuning, and finished models of params.yaml -> their scores and responses, as `evaluation`."""

from functools import partial

from persyn.evaluation import as_student, evaluate_once
from persyn.files import write_json
from persyn.project.params import read_params
from persyn.schemas import SAMPLES, write_table
from stages import launch_config, launch_processes, run


def main(tasks: str, out: str, scores: str, only: str | None = None) -> None:
    """Args: only: evaluate this model alone, so that its result is kept: what launched processes do."""
    params = read_params()
    config, found = launch_config("evaluation"), {}
    for name, model in params.finished.items():
        if only not in (None, name):
            continue
        elsewhere = partial(launch_processes, "beside", config, tasks, out, scores, name) if config else None
        how = params.evaluation, params.speed.evaluation, model.thinking
        with as_student(name, model, params.student.date) as folder:
            found[name], responses = evaluate_once(folder, tasks, *how, elsewhere)
        if only is None:
            write_table(responses, f"{out}/{name}.parquet", SAMPLES)
    if only is None:
        write_json(found, scores)


if __name__ == "__main__":
    run(main)

"""Stages: one thin script a stage of dvc.yaml. Arguments, parameters and tables in, one call, tables out."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from persyn.errors import InputError, Stopped, ending_in_one_line
from persyn.project.params import read_params

SUMMARY = Path("metrics/summary.json")
KEEP_SUMMARY = {"summary", "comparison", "plots"}
"""The stage that writes SUMMARY, and those that it does not depend on."""


def run(main: Callable[..., None], *arguments: str, launched: str | None = None) -> None:
    """Call `main` with argv, unless `arguments` are given; see ending_in_one_line.

    Args:
        launched: the name of a stage that trains, which `launch` may run instead, in several processes.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("persyn").setLevel(logging.INFO)
    with ending_in_one_line():
        if launched:
            launch(launched)
        main(*(arguments or sys.argv[1:]))
        forget_summary(Path(main.__code__.co_filename))


def launch(stage: str) -> None:
    """Run the stage again by `accelerate launch` and end as that ends, where `speed.<stage>.launch` names the config
    file of accelerate to do so with. Do nothing where it does not, or where this process has been launched already.

    Raises:
        InputError: there is no such file.
    """
    config = getattr(read_params().speed, stage).launch
    if config is None or not {"RANK", "PERSYN_LAUNCHED"}.isdisjoint(os.environ):
        return
    if not Path(config).is_file():
        raise InputError(
            f"speed.{stage}.launch is {config!r}, there is no such file; name a config file of accelerate, such as "
            f"configs/accelerate/one_gpu.yaml, or null"
        )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "-m", f"stages.{stage}"]
    # In a session of its own all that it starts can be told to stop together: accelerate does not pass every signal on.
    environment = {**os.environ, "PERSYN_LAUNCHED": "1"}
    with subprocess.Popen([*command, *sys.argv[1:]], env=environment, start_new_session=True) as launcher:
        try:
            status = launcher.wait()
        except Stopped as stopped:
            os.killpg(launcher.pid, stopped.args[0])
            raise
    sys.exit(status if status >= 0 else 128 - status)


def forget_summary(script: Path) -> None:
    """Remove the summary after a stage that it depends on: its numbers are of earlier results. An experiment that stops
    there then has no numbers in `dvc exp show`, instead of those of the commit that it started from."""
    if script.parent.name == "stages" and script.stem not in KEEP_SUMMARY:
        SUMMARY.unlink(missing_ok=True)

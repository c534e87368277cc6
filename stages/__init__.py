"""Stages: a thin script for each stage of dvc.yaml: it reads arguments, parameters and tables and makes one call."""

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
        launched: the name of a training stage, which `launch` may run in several processes instead.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("persyn").setLevel(logging.INFO)
    with ending_in_one_line():
        if launched:
            launch(launched)
        main(*(arguments or sys.argv[1:]))
        forget_summary(Path(main.__code__.co_filename))


def launch(stage: str) -> None:
    """If `speed.<stage>.launch` names a config file of accelerate, rerun the stage by `accelerate launch` and exit with
    its status. Otherwise, or in a process that was launched so, do nothing.

    Raises:
        InputError: as launch_config.
    """
    if config := launch_config(stage):
        launch_processes(stage, config, *sys.argv[1:])
        sys.exit(0)


def launch_config(section: str) -> str | None:
    """`speed.<section>.launch`; None in a process that was launched by it.

    Raises:
        InputError: the file does not exist.
    """
    config: str | None = getattr(read_params().speed, section).launch
    if config is None or not {"RANK", "PERSYN_LAUNCHED"}.isdisjoint(os.environ):
        return None
    if not Path(config).is_file():
        raise InputError(
            f"speed.{section}.launch is {config!r}, which does not exist; name a config file of accelerate, such as "
            f"configs/accelerate/one_gpu.yaml, or null"
        )
    return config


def launch_processes(stage: str, config: str, *arguments: str) -> None:
    """Run a stage by `accelerate launch` with this config file; exit with its status if it fails."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "-m", f"stages.{stage}"]
    # A session of its own lets us stop all of its processes together: accelerate does not pass every signal on.
    environment = {**os.environ, "PERSYN_LAUNCHED": "1"}
    with subprocess.Popen([*command, *arguments], env=environment, start_new_session=True) as launcher:
        try:
            status = launcher.wait()
        except Stopped as stopped:
            os.killpg(launcher.pid, stopped.args[0])
            raise
    if status:
        sys.exit(status if status > 0 else 128 - status)


def forget_summary(script: Path) -> None:
    """Remove the summary when a stage that it depends on reruns: its numbers are outdated. An experiment that stops
    there then shows no numbers in `dvc exp show`, instead of those of the commit that it started from."""
    if script.parent.name == "stages" and script.stem not in KEEP_SUMMARY:
        SUMMARY.unlink(missing_ok=True)

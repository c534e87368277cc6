"""Kills: `dvc repro`, and `dvc exp run --temp`, killed in every stage; each time the same command goes on.

    python -m benchmarks.kills                  about 15 minutes, on tiny models
    python -m benchmarks.kills --only router    kills in stages whose name holds this text

The table says for each command how often it was killed, whether a stage that was done ran again, and whether dvc.lock
came out as in a run that nothing disturbed.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tqdm import tqdm

from benchmarks.faults import Row, print_table
from tests.support.tiny import build_model, tiny_params, tiny_project

RUNNING = re.compile(r"Running stage '(.+)':")
COMMANDS = {"dvc repro": ["repro"], "dvc exp run --temp": ["exp", "run", "--temp", "--name", "killed"]}


def main() -> None:
    """Run both commands and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--command", choices=COMMANDS, action="append")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = build_model(folder / "model")
        calm = Project(folder / "calm", model)
        seconds = calm.undisturbed()
        lock = calm.lock("dvc repro")
        commands = asked.command or COMMANDS
        rows = [row for command in commands for row in killed(folder, model, command, seconds, lock, asked.only)]
    sys.exit(print_table(rows))


def killed(
    folder: Path, model: str, command: str, seconds: dict[str, float], lock: Any, only: str = "", target: str = ""
) -> Iterator[Row]:
    """Kill `command` once in every stage whose name holds `only`, then let it end; on a project with nothing done.

    Args:
        target: the stage to go up to; empty for all.
        seconds: how long each stage takes undisturbed.
        lock: the dvc.lock of a run that nothing disturbs.
    """
    project, draw = Project(folder / command.replace(" ", "-"), model), random.Random(0)
    pending, completed = [stage for stage in seconds if only in stage], set[str]()
    again = kills = mended = 0
    finished = False
    with tqdm(total=len(pending), desc=command, unit="kill") as bar:
        while not finished:
            ran: list[str] = []
            with project.start(command, target) as run:
                for stage in stages_of(run):
                    ran.append(stage)
                    if stage in pending:
                        time.sleep(draw.uniform(0, seconds[stage]))
                        os.killpg(run.pid, signal.SIGKILL)
                        pending.remove(stage)
                        kills += 1
                        bar.update()
                        break
            again += len(completed & set(ran))
            for stage in completed & set(ran):
                tqdm.write(f"{command}: {stage} ran again though done")
            completed |= set(ran[:-1])
            finished = run.returncode != -signal.SIGKILL
            if run.returncode and project.mend():
                finished, mended = False, mended + 1
    if run.returncode:
        tqdm.write(project.errors.read_text()[-2000:])
    fault = f"{command}, killed in {kills} stages"
    yield fault, "DVC's lock files cut, and deleted", mended, kills
    yield fault, "exit status of the last run", run.returncode, 0
    yield fault, "stages run again though done", again, 0
    yield fault, "stages that ended before their kill", len(pending), len(seconds) // 10
    yield fault, "dvc.lock differs from an undisturbed one", int(project.lock(command) != lock), 0


def stages_of(run: subprocess.Popen[str]) -> Iterator[str]:
    """The stages that a DVC process runs, as they begin."""
    assert run.stdout
    for line in run.stdout:
        if match := RUNNING.search(line):
            yield match[1]


class Project:
    """A copy of the pipeline on tiny models: a git and DVC repository with a store and a cache of its own."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = tiny_project(folder / "project", tiny_params(model))
        self.errors = folder / "errors.log"
        author = dict.fromkeys(
            ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"], "persyn@localhost"
        )
        binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PERSYN_STORE": str(folder / "store"), "PERSYN_CACHE": str(folder / "cache"), "PATH": binaries}
        self.environment = os.environ | author | own | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        for command in (
            ["git", "init", "-q"],
            [*DVC, "init", "-q"],
            ["git", "add", "."],
            ["git", "commit", "-qm", "start"],
        ):
            subprocess.run(command, cwd=self.folder, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def start(self, command: str, target: str = "") -> subprocess.Popen[str]:
        """Start `command` in a process group of its own."""
        return subprocess.Popen(
            [*DVC, *COMMANDS[command], *filter(None, [target])],
            cwd=self.folder,
            env=self.environment,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=self.errors.open("w"),
            text=True,
        )

    def undisturbed(self, target: str = "") -> dict[str, float]:
        """`dvc repro` to the end. Returns the seconds of every stage."""
        begun = []
        with self.start("dvc repro", target) as run:
            begun = [(stage, time.monotonic()) for stage in tqdm(stages_of(run), desc="undisturbed", unit="stage")]
        if run.returncode:
            sys.exit("the undisturbed run failed")
        ends = [at for _, at in begun[1:]] + [time.monotonic()]
        return {stage: end - at for (stage, at), end in zip(begun, ends, strict=True)}

    def mend(self) -> bool:
        """Delete a lock file of DVC's that a kill has cut: it writes them in place. Its run cache knows the rest."""
        said = self.errors.read_text()
        if re.search(r"dvc\.lock' (?:validation failed|is invalid)", said):
            (self.folder / "dvc.lock").unlink()
        elif "Unable to read RWLock-file" in said:
            (self.folder / ".dvc" / "tmp" / "rwlock").unlink()
        else:
            return False
        return True

    def lock(self, command: str) -> dict[str, Any]:
        """The dvc.lock that `command` has made, parsed: DVC runs independent stages in any order."""
        if command == "dvc repro":
            return YAML(typ="safe", pure=True).load(self.folder / "dvc.lock")
        git = ["git", "for-each-ref", "--format=%(refname)", "refs/exps"]
        names = subprocess.run(git, cwd=self.folder, capture_output=True, text=True, check=True).stdout.split()
        [name] = [name for name in names if name.endswith("/killed")]
        show = ["git", "show", f"{name}:dvc.lock"]
        shown = subprocess.run(show, cwd=self.folder, capture_output=True, text=True, check=True).stdout
        return YAML(typ="safe", pure=True).load(shown)


DVC = [sys.executable, "-m", "dvc"]

if __name__ == "__main__":
    main()

"""Rehearse profiles: `python -m rehearsal` runs all of profiles/paper-*, `python -m rehearsal paper-instruct` one.

Each runs all of its stages in .rehearsal/<profile>, then generate-then-select, on the parallel prompts of that run, in
.rehearsal/<profile>-select. Stages that have run before and have not changed are skipped.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

from persyn.errors import InputError, nearest, printable
from rehearsal.project import PROFILES, Rehearsed, prepare, rehearse, table


def main() -> None:
    """Rehearse the named profiles, two at once, and print one table."""
    known = sorted(path.parent.name for path in PROFILES.glob("*/params.yaml"))
    parser = argparse.ArgumentParser(prog="python -m rehearsal", description=__doc__)
    parser.add_argument("profiles", nargs="*", help="folders of profiles/; all paper-* if none is named")
    names = parser.parse_args().profiles or [name for name in known if name.startswith("paper-")]
    for name in names:
        if name not in known:
            raise InputError(f"there is no profile {name}{nearest(name, known)}")
    done: list[Rehearsed] = []
    prepared = {name: prepare(name) for name in names}  # not in threads: random models share torch's global generator
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(rehearse, name, small) for name, small in prepared.items()]
        for future in as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            done += future.result()
    print(table(done))  # noqa: T201


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit("\n".join(printable(line) for line in f"error: {error}".splitlines()))

"""Report: how large its page is, how long it takes to make, and how soon it can be browsed in Chromium.

    python -m benchmarks.report             about two minutes; needs chromium and chromedriver

The project is made up: 5,000 prompts, each answered by every teacher, in words drawn at random from 2,000 (Zipf's law).
Opening is from the start of navigation to the moment the sample can be filtered, of a file.
"""

import argparse
import re
import statistics
import tempfile
import time
from pathlib import Path

from tests.support.chromium import missing, open_chromium, open_page
from tests.support.invented import made_up, report_of

RUNS = 5


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=5000)
    parser.add_argument("--characters", type=int, nargs="+", default=[300, 2000])
    parser.add_argument("--teachers", type=int, nargs="+", default=[3, 19])
    asked = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    print("| teachers | characters of a response | cut at | page, MB | made in, s | opens in, s: min, median, max |")  # noqa: T201
    for teachers in asked.teachers:
        for characters in asked.characters:
            print(row(asked.prompts, teachers, characters))  # noqa: T201


def row(prompts: int, teachers: int, characters: int) -> str:
    """One line of the table."""
    tables = made_up(prompts, teachers, characters)
    start = time.perf_counter()
    text = report_of(tables)
    made = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(text)
        seconds = opening(page)
        size = page.stat().st_size / 1e6
    cut = re.search(r"responses at\s+([\d,]+)", text)
    times = ", ".join(f"{value:.2f}" for value in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"| {teachers} | {characters:,} | {cut[1] if cut else 'whole'} | {size:.2f} | {made:.1f} | {times} |"


def opening(page: Path) -> list[float]:
    """Seconds from the start of navigation until the sample can be browsed, run by run."""
    seconds = []
    with open_chromium() as driver:
        for _ in range(RUNS):
            open_page(driver, page)
            mark = driver.execute_script("return performance.getEntriesByName('browse-ready')[0].startTime")
            seconds.append(mark / 1000)
    return seconds


if __name__ == "__main__":
    main()

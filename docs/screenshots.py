"""Pictures of a project's report, as they are shown in the docs.

    make screenshots                                        of the demo, into docs/images
    python docs/screenshots.py --project profiles/laptop --out docs/images/laptop

It makes the report anew, opens it in Chromium (needs chromium and chromedriver) and takes the same views every time.
"""

import argparse
import base64
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.chromium import missing, open_chromium, open_page  # noqa: E402

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

WIDTH, HEIGHT = 1120, 900
COLOURS = 256
MAX_BYTES = 300_000


def main() -> None:
    """Make the report and every picture of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=ROOT, help="The folder of a project that has run.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    asked = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_chromium(WIDTH, HEIGHT) as driver:
        page = Path(folder) / "report.html"
        command = [sys.executable, "-m", "persyn.cli", "report", "--out", str(page)]
        subprocess.run(command, cwd=asked.project, check=True)
        open_page(driver, page)
        for name, view in VIEWS.items():
            picture = small(shot(driver, *view(driver)))
            if len(picture) > MAX_BYTES:
                raise SystemExit(f"{name}: {len(picture):,} bytes, more than {MAX_BYTES:,}")
            (asked.out / f"{name}.png").write_bytes(picture)
            print(f"{asked.out / name}.png {len(picture):,} bytes")  # noqa: T201


def top(driver: "Chrome") -> tuple[float, float]:
    """The head of the page, the flow and the allocation."""
    return 0, bottom(driver, "#allocation figure")


def section(name: str, last: str = "") -> Callable[["Chrome"], tuple[float, float]]:
    """One section of the page, down to one of its elements or to its end."""
    return lambda driver: (edge(driver, f"#{name}", "top"), bottom(driver, f"#{name} {last}"))


def browser(driver: "Chrome") -> tuple[float, float]:
    """The parallel prompts, rewards furthest apart first, one of them open."""
    driver.execute_script("location.hash = '#browse?sort=apart&parallel=on'")
    driver.execute_async_script("setTimeout(arguments[0], 300)")
    driver.find_element("css selector", ".browse-open").click()
    return edge(driver, "#browse", "top"), bottom(driver, "#browse-list > li:nth-child(4)")


VIEWS = {
    "report": top,
    "landscape": section("landscape", ".charts"),
    "router": section("router", ".charts"),
    "signatures": section("signatures"),
    "browser": browser,
}


def edge(driver: "Chrome", selector: str, side: str) -> float:
    """Pixels from the top of the page to one side of an element."""
    script = f"return document.querySelector(arguments[0]).getBoundingClientRect().{side} + scrollY"
    return driver.execute_script(script, selector)


def bottom(driver: "Chrome", selector: str) -> float:
    """Pixels from the top of the page to just below an element."""
    return edge(driver, selector, "bottom") + 24


def shot(driver: "Chrome", start: float, end: float) -> bytes:
    """A png of the page from `start` to `end`, pixels from its top."""
    driver.execute_script("scrollTo(0, 0); document.activeElement.blur()")
    clip = {"x": 0, "y": start, "width": WIDTH, "height": end - start, "scale": 1}
    asked = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    return base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"])


def small(png: bytes) -> bytes:
    """The same picture in few colours."""
    from PIL import Image

    packed = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture = picture.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(packed, "png", optimize=True)
    return packed.getvalue()


if __name__ == "__main__":
    main()

"""Headless Chromium for the tests of the report, its screenshots and its benchmark. Nothing is downloaded."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--force-prefers-reduced-motion",
    "--lang=en",
]


def missing() -> str | None:
    """Why there is no browser here, or None."""
    absent = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"needs {' and '.join(absent)} (Debian: chromium, chromium-driver)" if absent else None


@contextmanager
def open_chromium(width: int = 1280, height: int = 900) -> Iterator["Chrome"]:
    """A fresh browser with its own empty profile; it logs its console and every request."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(prefix="persyn-chromium-", ignore_cleanup_errors=True) as profile:
        for flag in [*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}", "about:blank"]:
            options.add_argument(flag)
        driver = Chrome(options=options, service=Service(executable_path=str(shutil.which("chromedriver"))))
        try:
            yield driver
        finally:
            driver.quit()


def open_page(driver: "Chrome", page: Path, address: str = "") -> None:
    """Open a file and wait until its sample is ready to browse."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get("about:blank")
    driver.get(page.resolve().as_uri() + address)
    WebDriverWait(driver, 60, poll_frequency=0.05).until(
        lambda _: driver.execute_script("return performance.getEntriesByName('browse-ready').length")
    )


def requests(driver: "Chrome") -> list[str]:
    """The address of every request since the last call."""
    events: list[dict[str, Any]] = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

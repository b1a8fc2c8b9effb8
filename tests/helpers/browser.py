"""Chromium as the tests drive it, by the paths that Debian gives it and its driver.

Where they lack, tests that ask for it are skipped; where ``NRM_BROWSER`` is ``required``, as
``.ci/run`` sets it, they fail.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVERS = ("chromedriver",)
ALIAS = "alias.test"
"""Another name of this machine, which the browser alone knows."""
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # containers have none; it opens pages of the tests alone
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--window-size=1280,800",
    # Nothing outside this machine is there: a page that needs it shows so in the console.
    f"--host-resolver-rules=MAP {ALIAS} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE localhost, "
    "EXCLUDE 127.0.0.1",
)


def _path(names: tuple[str, ...]) -> str | None:
    searched = os.pathsep.join(["/usr/bin", os.environ.get("PATH", "")])
    return next(filter(None, (shutil.which(name, path=searched) for name in names)), None)


@contextlib.contextmanager
def chrome(*arguments: str, downloads: str | os.PathLike[str] | None = None) -> Iterator[Chrome]:
    """Open a browser of 1280 x 800 without a window; skip, or fail, where there is none.

    Parameters
    ----------
    *arguments
        Further ones of its command line.
    downloads
        Folder that it saves files in, without asking.
    """
    binary, driver = _path(BROWSERS), _path(DRIVERS)
    if binary is None or driver is None:
        reason = f"needs {BROWSERS[0]} and {DRIVERS[0]}: apt-get install chromium chromium-driver"
        if os.environ.get("NRM_BROWSER") == "required":
            pytest.fail(f"{reason}; NRM_BROWSER=optional skips it")
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (*ARGUMENTS, *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if downloads is not None:
        options.add_experimental_option(
            "prefs",
            {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        )
    running = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        # The window's size counts a title bar that is not there: this is what the page sees.
        metrics = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        running.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield running
    finally:
        running.quit()


def console(running: Chrome) -> list[str]:
    """Return what pages wrote into the console since it was last asked, level before text."""
    return [f"{entry['level']} {entry['message']}" for entry in running.get_log("browser")]

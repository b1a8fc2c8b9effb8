"""A browser for the tests that are driven in one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers import browser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    """One browser for a module; tests that use it are marked slow."""
    with browser.chrome() as running:
        yield running

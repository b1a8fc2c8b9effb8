"""What holds for every test."""

import os
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core, so one thread a process
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _interruptible():
    """Let Ctrl-C interrupt, also where the tests run in the background, which ignores it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _one_writer(monkeypatch):
    """One shard per extraction, however many cores the machine has."""
    monkeypatch.setattr("nrm_graph.extraction._writers", lambda: 1)

"""What holds for every test."""

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import typing

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core, so one thread a process
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A device is registered by being imported, which looking for doctests would do in every process.
collect_ignore = (
    []
    if "helpers.simulated_device" in sys.modules
    else ["helpers/simulated_device.py", "reference/simulated_runs.py"]
)

gc.set_threshold(10_000, 10, 5)  # torch alone keeps half a million objects, looked at each time


def pytest_collection_finish():
    """Leave what lives as long as the process does to itself: the collector need not read it."""
    if "torch" in sys.modules:
        with contextlib.suppress(ImportError, AttributeError):  # where torch has it otherwise
            _quicken_export()
    gc.collect()
    gc.freeze()


def _quicken_export():
    """Spare torch.export what it repeats to no effect; most tests trace a network or two.

    It evaluates an annotation for each of thousands of kernels (aliases of ``typing`` are
    remembered), and loads the list of all operations for each of their namespaces in turn.
    Networks that processes of their own trace are exported as torch has it.
    """
    import torch
    from torch._export import utils
    from torch.export import decomp_utils, exported_program

    torch._ops.Callable = typing.Callable
    load, collect = utils._materialize_cpp_cia_ops, utils._collect_all_valid_cia_ops

    def collect_once():
        load()
        utils._materialize_cpp_cia_ops = lambda: None
        try:
            return collect()
        finally:
            utils._materialize_cpp_cia_ops = load

    for module in (utils, decomp_utils, exported_program):
        module._collect_all_valid_cia_ops = collect_once


def pytest_collection_modifyitems(items):
    """Refuse smoke tests that are slow: ``-m smoke`` would run them."""
    marked = [{mark.name for mark in item.iter_markers()} for item in items]
    both = [
        item.nodeid for item, names in zip(items, marked, strict=True) if {"smoke", "slow"} <= names
    ]
    if both:
        raise pytest.UsageError(f"marked smoke and slow: {', '.join(both)}")


@pytest.fixture(autouse=True)
def _interruptible():
    """Let Ctrl-C interrupt, also where the tests run in the background, which ignores it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def remembered_traces():
    """Trace networks that look the same once: for tests of something else than tracing."""
    from helpers import remembered

    with remembered.traces():
        yield


@pytest.fixture(autouse=True)
def _one_writer(monkeypatch):
    """One shard per extraction, however many cores the machine has."""
    monkeypatch.setattr("nrm_graph.extraction.extract._writers", lambda: 1)


@pytest.fixture
def disk(tmp_path):
    """Return a function that mounts a small disk of memory; skips where that is not allowed."""
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("needs mount")
    where = tmp_path / "disk"
    where.mkdir()
    mounted = []

    def mount(options):
        argv = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"may not mount: {done.stderr.strip()}")
        mounted.append(where)
        return where

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)

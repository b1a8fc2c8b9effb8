"""Libraries that may be absent, imported where they are used: Ray, scipy, scikit-learn, pandas,
Plotly.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError
from nrm_graph.signals import keeping_handlers

if TYPE_CHECKING:
    from collections.abc import Iterator

CPUS = 0.5
"""Share of a core that a process claims: those who claim all of them wait for each other."""


def installed() -> None:
    """Refuse to go on without Ray.

    Raises
    ------
    InputError
        Saying what to install.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            "engine='ray' needs the package ray, which is not installed: pip install "
            "'nrm-graph[ray]', or use engine='local'"
        )


def module() -> Any:
    """Ray, which is imported nowhere else."""
    return importlib.import_module("ray")


@contextlib.contextmanager
def started(workers: int | None = None) -> Iterator[Any]:
    """Ray itself; what is started here ends here.

    Parameters
    ----------
    workers : int, optional
        Number of processes that will run at once; decides how many cores a Ray that is started
        here takes itself to have.

    Raises
    ------
    InputError
        If Ray is not installed, or the cluster that ``RAY_ADDRESS`` names cannot be reached.
    """
    installed()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = module()
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "include_dashboard": False,
    }
    try:
        with keeping_handlers():  # Ray's would end its processes before they commit
            if os.environ.get("RAY_ADDRESS"):
                ray.init(log_to_driver=False, logging_level="ERROR")
            else:
                cores = max(os.cpu_count() or 1, workers or 1)
                with _search_path():
                    ray.init(address="local", num_cpus=cores, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"Ray cannot be started: {str(error).splitlines()[0]}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _search_path() -> Iterator[None]:
    """Let processes that start meanwhile import what this one can."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def size(ray: Any) -> tuple[int, float]:
    """Cores and accelerators of the cluster."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get("CPU", 1))), float(resources.get("GPU", 0))


def cause_of(error: BaseException) -> BaseException:
    """Return what a task raised, as it was raised there; any other error is its own cause."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def library(name: str, what: str, remedy: str) -> Any:
    """Import a module that may be absent.

    Parameters
    ----------
    name : str
        Of the module.
    what : str
        What needs it, in the plural.
    remedy : str
        What to do where it lacks.

    Raises
    ------
    InputError
        If it is not installed; the message says what to do.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{what} need {name.partition('.')[0]}, which is not installed ({error}): {remedy}"
        ) from None


def stats_library(name: str) -> Any:
    """Import a module of scipy or scikit-learn; raises as :func:`library` does."""
    return library(name, "statistics over circuits", "pip install 'nrm-graph[stats]'")


def data_frames() -> Any:
    """Import pandas; raises as :func:`library` does."""
    return library("pandas", "data frames", "pip install pandas, or take to_arrow()")


def plotly(name: str = "plotly") -> Any:
    """Import Plotly, or a module of it; raises as :func:`library` does."""
    return library(name, "interactive pictures", "pip install 'nrm-graph[explorer]'")

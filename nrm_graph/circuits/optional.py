"""Libraries of the extra ``nrm-graph[stats]``, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nrm_graph.errors import InputError


def stats_library(name: str) -> Any:
    """Import a module of scipy or scikit-learn.

    Raises
    ------
    InputError
        If it is not installed; the message says what to install.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"statistics over circuits need {name.partition('.')[0]}, which is not installed "
            f"({error}): pip install 'nrm-graph[stats]'"
        ) from None

"""transformers, imported nowhere else, and kept off the network and quiet while it works."""

from __future__ import annotations

import contextlib
import importlib
import threading
import warnings
from typing import TYPE_CHECKING, Any

from nrm_graph._optional import library

if TYPE_CHECKING:
    from collections.abc import Iterator

_SETTINGS = threading.RLock()  # those that are changed for a while are the process's


def transformers() -> Any:
    """Import transformers; raises as :func:`nrm_graph._optional.library` does."""
    return library("transformers", "language models", "pip install 'nrm-graph[language]'")


@contextlib.contextmanager
def quiet(*, offline: bool) -> Iterator[Any]:
    """Lend transformers without its log, bars and warnings, and without kernels from the hub.

    Parameters
    ----------
    offline : bool
        Whether it must not ask the hub for anything: settings of the process, and none of its
        environment, are changed inside and set back.
    """
    library = transformers()
    logs = importlib.import_module("transformers.utils.logging")
    constants = importlib.import_module("huggingface_hub.constants")
    kernels = importlib.import_module("transformers.integrations.hub_kernels")
    with _SETTINGS, contextlib.ExitStack() as settings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings.callback(logs.set_verbosity, logs.get_verbosity())
        logs.set_verbosity(logs.CRITICAL)
        if logs.is_progress_bar_enabled():
            settings.callback(logs.enable_progress_bar)
            logs.disable_progress_bar()
        for module, name, value in (
            (kernels, "_kernels_enabled", False),
            (constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE or offline),
        ):
            settings.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield library

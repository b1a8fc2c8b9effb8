"""What an extraction is asked for, beside its network and inputs: refused before any is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nrm_graph import _optional
from nrm_graph.errors import InputError
from nrm_graph.extraction.samples import indexed
from nrm_graph.store.format.manifest import is_text

if TYPE_CHECKING:
    from collections.abc import Iterable


def check_options(
    batch_size: int, tensors: str, preprocessing: object, on_error: str, classes: Any
) -> None:
    """Refuse options that are none of those that are known.

    Raises
    ------
    InputError
        Naming the first one.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be at least 1, found {batch_size!r}")
    for name, value, allowed in (
        ("tensors", tensors, ("keep", "omit")),
        ("on_error", on_error, ("stop", "skip")),
    ):
        if value not in allowed:
            raise InputError(f"{name} must be {' or '.join(map(repr, allowed))}, found {value!r}")
    if preprocessing is not None and not is_text(preprocessing):
        raise InputError(f"preprocessing must be text in UTF-8, found {preprocessing!r:.80}")
    if classes is not None and (isinstance(classes, str) or not all(map(is_text, classes))):
        raise InputError(f"classes must be a list of names in UTF-8, found {classes!r:.80}")


def check_engine(engine: str, workers: int | None, inputs: Iterable[Any]) -> None:
    """Refuse an engine that is not known or not there, or cannot take these inputs.

    Raises
    ------
    InputError
        Saying what to give instead.
    """
    if engine not in ("local", "ray"):
        raise InputError(f"engine must be 'local' or 'ray', found {engine!r}")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int)):
        raise InputError(f"workers must be a number of processes, found {workers!r}")
    if workers is not None and (engine == "local" or workers < 1):
        raise InputError(
            f"workers={workers}: expected at least 1, with engine='ray'; one process computes "
            "with engine='local'"
        )
    if engine == "ray":
        _optional.installed()
        if not indexed(inputs):
            raise InputError(
                "engine='ray' takes inputs with a length and an index (a folder, an array, a data "
                f"set, a list), found {type(inputs).__name__}: give the data set itself, or a list"
            )

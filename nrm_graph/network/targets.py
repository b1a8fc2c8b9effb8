"""Targets: which output is explained, by its place in what the network returns; no torch here.

A target is stored as the flat index of an output.  People say it by its place: ``464``, or
``(position, class)`` where the output has several axes, with the output's name in front where
the network returns several.  Signed weights of several outputs, which are one target together,
are stored as the text that :mod:`nrm_graph.network.weighted_targets` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.network import weighted_targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from nrm_graph.network.ir.program import Program
    from nrm_graph.network.weighted_targets import Aim

    Values = npt.NDArray[np.floating]
    """All outputs of one sample."""

PREDICTED = "predicted"
NAMED = (PREDICTED, "label")

Sought = int | str | tuple[Any, ...] | Mapping[Any, float]
"""A target of a store: index, place or weights of outputs, or the text of weights."""

SHOWN = 4
"""Weights of one target that are shown."""


@dataclass(frozen=True)
class Outputs:
    """What a network returns, laid side by side as one row of outputs.

    Attributes
    ----------
    parts : tuple of (str, shape)
        Name and shape of one sample of every tensor; a lone one may lack its name.
    """

    parts: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def count(self) -> int:
        """Number of outputs."""
        return sum(math.prod(shape) for _, shape in self.parts)

    def is_place(self, target: object) -> bool:
        """Whether a tuple is one place in the output, rather than several targets."""
        if not isinstance(target, tuple) or not target:
            return False
        if isinstance(target[0], str):
            return target[0] in [name for name, _ in self.parts if name]
        axes = len(self.parts[0][1])
        return len(self.parts) == 1 and axes > 1 and len(target) == axes

    def targets(self, asked: Any) -> list[Any]:
        """Targets one by one; a tuple that is a place in the output is one.

        Raises
        ------
        InputError
            If one is text of another kind.
        """
        if isinstance(asked, str | int | Mapping) or self.is_place(asked):
            return [asked]
        for choice in asked:
            if isinstance(choice, str) and choice not in NAMED:
                raise InputError(
                    f"target must be 'predicted', 'label' or an index, found {choice!r}"
                )
        return list(asked)

    def index(self, target: object, values: Values | None = None) -> int:
        """Flat index of a target.

        Parameters
        ----------
        target : int, or tuple of int
            Flat index, or place: negative numbers count from the end of an axis; ``"predicted"``
            instead of one stands for the largest output along that axis.
        values : ndarray, optional
            All outputs, to find the largest one.

        Raises
        ------
        InputError
            If there is no such output.

        Examples
        --------
        >>> logits = Outputs((("", (5, 100)),))
        >>> logits.index((-1, 64)), logits.place(464), logits.text(464)
        (464, (4, 64), '(4, 64)')
        """
        if isinstance(target, str) and target == PREDICTED and values is not None:
            return int(values.argmax())
        if isinstance(target, tuple):
            return self._placed(target, values)
        if isinstance(target, bool) or not isinstance(target, int | np.integer):
            raise InputError(f"target must be an output's index, found {target!r}")
        if not 0 <= target < self.count:
            raise InputError(
                f"target {target} is out of range: the network has {self.count} outputs"
            )
        return int(target)

    def _placed(self, target: tuple[object, ...], values: Values | None) -> int:
        first, name, shape = 0, *self.parts[0]
        rest = target
        names = [name for name, _ in self.parts if name]
        if target and target[0] in names and isinstance(target[0], str):
            for name, shape in self.parts:
                if name == target[0]:
                    break
                first += math.prod(shape)
            rest = target[1:]
        elif len(self.parts) > 1:
            raise InputError(
                f"target {target!r}: the network returns {', '.join(names)}, expected one of these "
                "names as its first entry"
            )
        whole = isinstance(rest, tuple) and rest == (PREDICTED,) and len(shape) != 1
        if len(rest) != len(shape) and not whole:
            raise InputError(
                f"target {target!r} has {len(rest)} entries for an output of shape {shape}: "
                "expected one for each axis, such as (position, class)"
            )
        unknown = [axis for axis, entry in enumerate(rest) if entry == PREDICTED]
        if len(unknown) > 1 or (unknown and values is None):
            raise InputError(
                f"target {target!r}: expected "
                + ("at most one 'predicted'" if len(unknown) > 1 else "numbers, not 'predicted'")
            )
        of_output = None
        if values is not None:
            of_output = values.ravel()[first : first + math.prod(shape)].reshape(shape)
        if whole:
            assert of_output is not None
            return first + int(of_output.argmax())
        place = [_entry(e, axis, target, shape) for axis, e in enumerate(rest)]
        if unknown:
            assert of_output is not None
            around: list[Any] = list(place)
            around[unknown[0]] = slice(None)
            place[unknown[0]] = int(of_output[tuple(around)].argmax())
        return first + int(np.ravel_multi_index(place, shape)) if shape else first

    def weights(
        self, target: Mapping[Any, float], values: Values | None = None
    ) -> dict[int, float]:
        """Weights of a target by flat index, ascending; those of one output are summed.

        Parameters
        ----------
        target : mapping of int or tuple to float
            Weights of outputs, by index or place.
        values : ndarray, optional
            All outputs, as for :meth:`index`.

        Raises
        ------
        InputError
            If there is no such output, or nothing is left of the weights.

        Examples
        --------
        >>> logits = Outputs((("", (5, 100)),))
        >>> logits.weights({(-1, 65): -1, (-1, 64): 1})
        {464: 1.0, 465: -1.0}
        """
        by_index: dict[int, float] = {}
        for place, weight in weighted_targets.checked(target).items():
            index = self.index(place, values)
            by_index[index] = by_index.get(index, 0.0) + weight
        by_index = {index: weight for index, weight in sorted(by_index.items()) if weight}
        if not by_index or not all(map(math.isfinite, by_index.values())):
            raise InputError(f"the weights of target {target!r} cancel, or are not finite in sum")
        return by_index

    def aim(self, target: object, values: Values | None = None) -> Aim:
        """Flat index of a target, or the text of its weights; see :meth:`index`."""
        if isinstance(target, Mapping):
            return weighted_targets.text_of(self.weights(target, values))
        return self.index(target, values)

    def sought(self, target: Sought) -> Aim:
        """Flat index, or text of weights, of a target that is looked up in a store.

        An index is taken as it is: there may be no input of it.

        Raises
        ------
        InputError
            If it is no target, or an output that the network has not.
        """
        if isinstance(target, str) and target.startswith("{"):
            target = weighted_targets.weights_of(target)
        if isinstance(target, Mapping | tuple):
            return self.aim(target)
        if isinstance(target, bool) or not isinstance(target, int | np.integer):
            raise InputError(
                f"target must be an output's number or place, or weights such as {{3: 1, 5: -1}}, "
                f"found {repr(target)[:100]}"
            )
        return int(target)

    def place(self, index: int) -> Any:
        """Place of an output: a number, or a tuple where it takes several to say."""
        first = 0
        for name, shape in self.parts:
            size = math.prod(shape)
            if first <= index < first + size:
                entries = np.unravel_index(index - first, shape) if shape else ()
                where = tuple(int(entry) for entry in entries)
                if len(self.parts) > 1:
                    return (name, *where)
                return where if len(shape) > 1 else index
            first += size
        return index

    def text(self, index: Aim, classes: Sequence[str] | None = None) -> str:
        """Place of an output in words, with its class where the names are known; or weights.

        Examples
        --------
        >>> Outputs((("", (5, 100)),)).text('{"464":1.0,"465":-1.0}')
        '{(4, 64): 1, (4, 65): -1}'
        """
        if isinstance(index, str):
            weights = weighted_targets.weights_of(index)
            parts = [f"{self.text(i, classes)}: {w:g}" for i, w in list(weights.items())[:SHOWN]]
            if len(weights) > SHOWN:
                parts.append(f"{len(weights) - SHOWN:,} more")
            return f"{{{', '.join(parts)}}}"
        place = self.place(index)
        if not isinstance(place, tuple):
            shown = str(place)
        else:
            named = isinstance(place[0], str)
            rest = place[1:] if named else place
            shown = str(rest[0]) if len(rest) == 1 else f"({', '.join(map(str, rest))})"
            shown = f"{place[0]} {shown if rest else ''}".strip() if named else shown
        if name := self.class_of(index, classes):
            clear = name.isprintable() and name == name.strip()
            shown += f" ({name if clear else repr(name)})"
        return shown

    def class_of(self, index: int, classes: Sequence[str] | None) -> str:
        """Name of the class of an output, its place along the last axis; empty if not known."""
        last = self._last
        fits = classes is not None and len(self.parts) == 1 and len(classes) <= last
        if not fits or classes is None or not 0 <= index < self.count:
            return ""
        # A store knows no more of a vocabulary than its targets: the rest is empty.
        return classes[index % last] if index % last < len(classes) else ""

    def names(
        self, classes: Sequence[str] | None, indices: Iterable[int] | None = None
    ) -> dict[int, str]:
        """Classes of outputs, by default of all, whose class is known."""
        if indices is None:  # of a vocabulary few are, and all others are not looked at
            known = [k for k, name in enumerate(classes or ()) if name]
            firsts = range(0, self.count, max(self._last, 1)) if known else ()
            indices = (first + k for first in firsts for k in known)
        return {i: name for i in indices if (name := self.class_of(i, classes))}

    @property
    def _last(self) -> int:
        """Size of the last axis of the first tensor, along which classes lie."""
        return next((s[-1] for _, s in self.parts[:1] if s), 0)


def _entry(entry: object, axis: int, target: object, shape: tuple[int, ...]) -> int:
    if entry == PREDICTED:
        return 0
    if isinstance(entry, bool) or not isinstance(entry, int | np.integer):
        raise InputError(f"target {target!r}: expected numbers, found {entry!r}")
    if not -shape[axis] <= entry < shape[axis]:
        raise InputError(f"target {target!r} is out of range: the output has the shape {shape}")
    return int(entry) % shape[axis]


def asked_for(target: object) -> Any:
    """Targets as they were asked for; what no network can have is refused at once.

    A tuple may be a place in the output or several targets: its shape tells.

    Raises
    ------
    InputError
        If there is nothing to explain, or something of another kind.
    """
    if hasattr(target, "tolist"):  # numbers of NumPy and torch
        target = target.tolist()
    if isinstance(target, str | int | Mapping):
        return _one(target)
    if isinstance(target, bytes) or not isinstance(target, Iterable):
        raise _unknown(target)
    choices = [_one(choice, isinstance(target, tuple)) for choice in target]
    if not choices:
        raise InputError("target names nothing to explain: expected at least one")
    return tuple(choices) if isinstance(target, tuple) else choices


def _one(choice: object, part: bool = False) -> Any:
    """Check one target; text in a tuple may be the name of an output."""
    if isinstance(choice, Mapping):
        return weighted_targets.checked(choice)
    if isinstance(choice, str) and (part or choice in NAMED):
        return choice
    if isinstance(choice, tuple):
        return choice
    if isinstance(choice, bool) or not isinstance(choice, int | np.integer):
        raise _unknown(choice)
    return int(choice)


def _unknown(target: object) -> InputError:
    return InputError(
        "target must be 'predicted', 'label', an index, a place such as (position, class), or "
        f"weights such as {{3: 1, 5: -1}}, found {repr(target)[:100]}"
    )


def outputs_of(program: Program) -> Outputs:
    """Return the outputs of a program."""
    if program.outputs:
        return Outputs(program.outputs)
    return Outputs((("", tuple(program.shapes()[program.output])),))


def stored_outputs(meta: Mapping[str, Any]) -> Outputs:
    """Return the outputs of a store's network, from its ``store.json``."""
    if "outputs" in meta:
        return Outputs(tuple((row["name"], tuple(row["shape"])) for row in meta["outputs"]))
    return Outputs((("", tuple(meta["layers"][-1]["shape"])),))

"""Targets: which output is explained, by its place in what the network returns; no torch here.

A target is stored as the flat index of an output.  People say it by its place: ``464``, or
``(position, class)`` where the output has several axes, with the output's name in front where
the network returns several.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from nrm_graph.program import Program

PREDICTED = "predicted"
NAMED = (PREDICTED, "label")


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

    def is_place(self, target: Any) -> bool:
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
        if isinstance(asked, str | int) or self.is_place(asked):
            return [asked]
        for choice in asked:
            if isinstance(choice, str) and choice not in NAMED:
                raise InputError(
                    f"target must be 'predicted', 'label' or an index, found {choice!r}"
                )
        return list(asked)

    def index(self, target: Any, values: npt.NDArray[Any] | None = None) -> int:
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

    def _placed(self, target: tuple[Any, ...], values: npt.NDArray[Any] | None) -> int:
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
        held = None
        if values is not None:
            held = values.ravel()[first : first + math.prod(shape)].reshape(shape)
        if whole:
            assert held is not None
            return first + int(held.argmax())
        place = [_entry(e, axis, target, shape) for axis, e in enumerate(rest)]
        if unknown:
            assert held is not None
            around: list[Any] = list(place)
            around[unknown[0]] = slice(None)
            place[unknown[0]] = int(held[tuple(around)].argmax())
        return first + int(np.ravel_multi_index(place, shape)) if shape else first

    def place(self, index: int) -> Any:
        """Place of an output: a number, or a tuple where it takes several to say."""
        first = 0
        for name, shape in self.parts:
            size = math.prod(shape)
            if first <= index < first + size:
                where = tuple(int(i) for i in np.unravel_index(index - first, shape or (1,)))
                where = where if shape else ()
                if len(self.parts) > 1:
                    return (name, *where)
                return where if len(shape) > 1 else index
            first += size
        return index

    def text(self, index: int, classes: Sequence[str] | None = None) -> str:
        """Place of an output in words, with its class where the names are known."""
        place = self.place(index)
        if not isinstance(place, tuple):
            shown, at = str(place), place
        else:
            named = isinstance(place[0], str)
            rest = place[1:] if named else place
            shown = str(rest[0]) if len(rest) == 1 else f"({', '.join(map(str, rest))})"
            shown = f"{place[0]} {shown if rest else ''}".strip() if named else shown
            at = place[-1]
        last = next((s[-1] for _, s in self.parts[:1] if s), 0)
        fits = classes is not None and len(self.parts) == 1 and len(classes) <= last
        if fits and classes is not None and isinstance(at, int) and 0 <= at < len(classes):
            shown += f" ({classes[at]})"
        return shown


def _entry(entry: Any, axis: int, target: Any, shape: tuple[int, ...]) -> int:
    if entry == PREDICTED:
        return 0
    if isinstance(entry, bool) or not isinstance(entry, int | np.integer):
        raise InputError(f"target {target!r}: expected numbers, found {entry!r}")
    if not -shape[axis] <= entry < shape[axis]:
        raise InputError(f"target {target!r} is out of range: the output has the shape {shape}")
    return int(entry) % shape[axis]


def asked_for(target: Any) -> Any:
    """Targets as they were asked for; what no network can have is refused at once.

    A tuple may be a place in the output or several targets: its shape tells.

    Raises
    ------
    InputError
        If there is nothing to explain, or something of another kind.
    """
    if isinstance(target, np.integer):
        return int(target)
    found = target if isinstance(target, str | int | tuple) else list(target)
    for choice in [found] if isinstance(found, str | int) else found:
        named = isinstance(choice, str) and (choice in NAMED or isinstance(found, tuple))
        number = isinstance(choice, int | np.integer) and not isinstance(choice, bool)
        if not named and not number and not isinstance(choice, tuple):
            raise InputError(
                "target must be 'predicted', 'label', an index or a place such as (position, "
                f"class), found {choice!r}"
            )
    if found in ([], ()):
        raise InputError("target names nothing to explain: expected at least one")
    return found


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

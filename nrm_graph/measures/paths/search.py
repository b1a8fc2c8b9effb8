"""The strongest walks, or paths of units, of a measure: which search answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.errors import InputError
from nrm_graph.measures.paths import unit_paths, walks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nrm_graph.measures.event_algebra import Algebra
    from nrm_graph.measures.results import Paths
    from nrm_graph.network.units import Resolution


def paths(
    measure: Algebra,
    k: int = 10,
    layers: Sequence[str] | None = None,
    by: Resolution | Mapping[str, Resolution] = "unit",
    *,
    sign: str = "both",
    end: str = "input",
    beam: int | None = None,
    progress: bool = True,
) -> Paths:
    """Return the strongest walks, or the strongest paths of units, with what others may hold.

    Parameters
    ----------
    measure : Measure
        Conditioned or not.
    k : int
        Number of paths; of walks, of each sign.
    layers : sequence of str, optional
        Layers of which each path names one unit; by default all that every walk passes.
    by : str, array_like or mapping
        Resolution of the units, see :func:`nrm_graph.measures.paths.unit_paths.strongest_paths`.
        With ``by="neuron"`` and no ``layers``, or where every unit is a neuron, paths are
        walks: the exact k best ones (:func:`nrm_graph.measures.paths.walks.strongest_walks`).
    sign, end : str
        Of walks: "both", "positive" or "negative"; "input", or "any" to let walks that a bias
        or stabilizer absorbs compete.
    beam : int, optional
        Of paths of units: prefixes carried on from every layer; by default 256 to 4096, the
        more the smaller the layers are; a wider one certifies more.
    progress : bool
        Tell how far it has come once more than five seconds lie ahead: a bar, or lines where
        standard error is redirected.

    Returns
    -------
    Paths
        A sequence of ``Path(units, relevance)`` with ``bound``, ``mass`` and ``certified``.
        Every relevance is that of the event; grouped edges are never multiplied.
    """
    neurons = isinstance(by, str) and by == "neuron"
    single = isinstance(by, str) and by == "unit" and all(p.single for p in measure.partitions)
    if layers is None and (neurons or single):
        if beam is not None:
            raise InputError("beam goes with paths of units; walks are exact without one")
        return walks.strongest_walks(measure, k, sign, end, progress=progress)
    if sign != "both" or end != "input":
        raise InputError("sign and end go with walks: by='neuron', without layers")
    return unit_paths.strongest_paths(measure, k, layers, beam, by, progress)

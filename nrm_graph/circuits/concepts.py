"""Units of a layer that carry a class, each with inputs that show what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from nrm_graph.circuits.checks import check_count
from nrm_graph.circuits.nodes import node_means
from nrm_graph.circuits.references import references
from nrm_graph.circuits.source import source
from nrm_graph.errors import EventError, InputError
from nrm_graph.events.unit_sets import unit_set
from nrm_graph.network.unit_names import unit_name
from nrm_graph.store.input_group import group
from nrm_graph.tables.html_tables import Description, HtmlTable, Tabular, table_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nrm_graph.circuits.references import References
    from nrm_graph.events.sets import NeuronSet
    from nrm_graph.network.grouped_units import By
    from nrm_graph.network.targets import Sought
    from nrm_graph.store.view import View


@dataclass(frozen=True, eq=False, repr=False)
class Concept(Tabular):
    """A unit that carries a class.

    Attributes
    ----------
    event : NeuronSet
        Its neurons, to condition on.
    unit : int
        Its number.
    name : str
        Its name in words.
    relevance, stderr : float
        Mean over keys of its relevance (times weight), and the standard error; NaN of one key.
    share : float
        Of the sum of abs(mean relevance) over the layer.
    references : References
        Inputs in which it is most relevant, each with its heat map given the unit.
    """

    event: NeuronSet
    unit: int
    name: str
    relevance: float
    stderr: float
    share: float
    references: References

    def _description(self) -> Description:
        return Description(f"{self.event!r}: {self.carried}")

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        return self.references._html_tables()

    @property
    def carried(self) -> str:
        """How much it carries, in words."""
        return (
            f"{self.relevance:.4g} +- {self.stderr:.2g}, {self.share:.1%} of the layer's sum of "
            "|mean|"
        )

    def to_arrow(self) -> pa.Table:
        """Return the table of its reference inputs."""
        return self.references.table


@dataclass(frozen=True, repr=False)
class Concepts(Tabular, Sequence[Concept]):
    """The units of a layer that carry a class, the strongest first.

    Attributes
    ----------
    concepts : tuple of Concept
        One a unit.
    layer : str
        Their layer.
    where : str or None
        SQL condition over ``inputs`` that chose the class.
    keys : int
        Number of keys.
    units : int
        Number of units of the layer.
    weight : str
        What relevance is multiplied by.
    """

    concepts: tuple[Concept, ...]
    layer: str
    where: str | None
    keys: int
    units: int
    weight: str

    @overload
    def __getitem__(self, index: int) -> Concept: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Concept, ...]: ...
    def __getitem__(self, index: int | slice) -> Concept | tuple[Concept, ...]:
        return self.concepts[index]

    def __len__(self) -> int:
        return len(self.concepts)

    def _description(self) -> Description:
        chosen = "all inputs" if self.where is None else self.where
        title = (
            f"{len(self)} of {self.units:,} units of {self.layer} that carry {self.keys:,} keys "
            f"({chosen})"
        )
        return Description(title, rows=tuple(f"{c.name}: {c.carried}" for c in self))

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        caption = "share: of the layer's sum of |mean relevance|; plot() shows their inputs"
        return (table_of(self.table, caption=caption),)

    def to_arrow(self) -> pa.Table:
        """Return :attr:`table`."""
        return self.table

    @property
    def table(self) -> pa.Table:
        """One row per unit: ``unit``, ``name``, ``relevance``, ``stderr``, ``share``."""
        columns = ("unit", "name", "relevance", "stderr", "share")
        return pa.table({name: [getattr(c, name) for c in self] for name in columns})

    def plot(self, **options: Any) -> Figure:
        """Draw all of them; see :func:`nrm_graph.plots.plot_concepts`."""
        from nrm_graph.plots import plot_concepts

        return plot_concepts(self, **options)


def concepts(
    db: View,
    where: str | None,
    layer: str,
    k: int = 8,
    *,
    examples: int = 6,
    by: By | None = None,
    among: str | None = None,
    weight: str = "logit",
    target: Sought | None = None,
    mixed_targets: bool = False,
) -> Concepts:
    """Find the units of a layer that carry a class, and show what each of them is.

    Parameters
    ----------
    db : Database
        The store.
    where : str or None
        SQL condition over ``inputs`` that chooses the class, such as ``"label = 'cat'"``.
    layer : str
        Name or alias.
    k : int
        Number of units, at most: those of the largest positive mean relevance.
    examples : int
        Reference inputs of each.
    by : str or mapping, optional
        Units, as in :meth:`nrm_graph.database.Database.circuit`; by default channels where the
        layer is a map, else those of the store.
    among : str, optional
        SQL condition over the inputs that references are chosen from; the class by default.
    weight : "logit" or "unit"
        Rank by relevance times logit, or by relevance.
    target, mixed_targets
        As in :meth:`nrm_graph.database.Database.circuit`.

    Returns
    -------
    Concepts
        A sequence of :class:`Concept`; ``plot()`` draws it.

    Raises
    ------
    EventError
        If there is no such layer, or no unit of it has positive relevance.
    InputError
        If no input is chosen, their targets differ, or the store keeps no tensors.

    References
    ----------
    .. [1] R. Achtibat et al., "From attribution maps to human-understandable explanations through
       Concept Relevance Propagation", Nature Machine Intelligence 5 (2023), figure 2.

    Examples
    --------
    >>> concepts(db, "label = 'cat'", "features.28", k=8).plot()  # doctest: +SKIP
    """
    check_count("k", k)
    check_count("examples", examples)
    info = db.topology.layer(layer)
    if by is None and len(info.shape) == 3 and db.partitions[info.layer_id].single:
        by = {info.name: "channel"}
    chosen = group(db, where, target=target, mixed_targets=mixed_targets)
    rows = source(db, chosen, weight, by=by)
    part = rows.partitions(db)[info.layer_id]
    if rows.units is not None and part.resolution == "custom":
        raise InputError(f"by= names the units of concepts, found an array for {info.name}")
    nodes = pa.table(
        {
            "layer_id": np.full(part.n_units, info.layer_id, np.int16),
            "unit": np.arange(part.n_units, dtype=np.int32),
        }
    )
    keys, values = node_means(db, rows, nodes)
    mean, size = values.mean(0), float(np.abs(values.mean(0)).sum())
    spread = np.full(len(mean), np.nan)
    if len(keys) > 1:
        spread = values.std(0, ddof=1) / len(keys) ** 0.5
    order = np.argsort(-mean, kind="stable")[:k]
    carrying = order[mean[order] > 0].tolist()
    if not carrying:
        raise EventError(
            f"no unit of {info.name} has positive mean relevance for {chosen!r}: ask another layer"
        )
    found = []
    for unit in carrying:
        event = unit_set(info, part.resolution, unit)
        shown = references(
            db, event, k=examples, where=where if among is None else among, weight=weight
        )
        name = unit_name(info, part.kind, unit)
        numbers = (float(mean[unit]), float(spread[unit]), float(abs(mean[unit]) / size))
        found.append(Concept(event, unit, name, *numbers, shown))
    return Concepts(tuple(found), info.name, where, len(keys), part.n_units, weight)

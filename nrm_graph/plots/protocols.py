"""What pictures read of the answers that they show; any room's objects that have it can be drawn.

Pictures stand below the rooms whose answers they show, so that these can call them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    import pyarrow as pa

    from nrm_graph.events.sets import Event, NeuronSet
    from nrm_graph.network.topology import Topology
    from nrm_graph.network.units import Partition
    from nrm_graph.propagation.flags import Flag


class SideLike(Protocol):
    """One side of a joint matrix."""

    @property
    def units(self) -> npt.NDArray[Any]:
        """Units of the layer."""


class MatrixLike(Protocol):
    """Joint relevance of the units of two layers."""

    @property
    def values(self) -> npt.NDArray[Any]:
        """Relevance, (rows, columns)."""

    @property
    def rows(self) -> SideLike:
        """Units of the rows."""

    @property
    def columns(self) -> SideLike:
        """Units of the columns."""


class MeasureLike(Protocol):
    """The relevance measure of one input, as :class:`nrm_graph.Measure` is."""

    @property
    def topology(self) -> Topology:
        """Layers and edge groups of the network."""

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """Units of every layer."""

    @property
    def tokens(self) -> tuple[str, ...] | None:
        """Text of every position of the input, where it is known."""

    @property
    def condition(self) -> Event | None:
        """What the measure is conditioned on."""

    @property
    def error(self) -> float:
        """How far a conditioned measure may be off, relative to a layer's sum of |R|."""

    @property
    def amplification(self) -> float:
        """How far rounding may have been amplified."""

    @property
    def bias(self) -> str:
        """Reading of the measure: biases ``absorbed`` or ``ignored``."""

    @property
    def meaning(self) -> str:
        """What a positive number speaks for, in words."""

    @property
    def flags(self) -> tuple[Flag, ...]:
        """What a reader must know before trusting signs and sizes."""

    def target_text(self) -> str:
        """Target in words."""

    def marginal(self, layer: str, by: Any = "unit") -> npt.NDArray[Any]:
        """Relevance of a layer."""

    def joint(self, rows: str | NeuronSet, columns: str | NeuronSet) -> MatrixLike:
        """Exact joint relevance of the units of two layers."""

    def report(self) -> pa.Table:
        """Conservation report, one row per layer."""

    def constants(self) -> pa.Table:
        """Return what biases and constants hold."""


class ReferencesLike(Protocol):
    """Inputs ranked by a set of neurons, as :func:`nrm_graph.circuits.references` ranks them."""

    @property
    def event(self) -> NeuronSet:
        """The set."""

    @property
    def event_text(self) -> str:
        """The set as text, with its own name."""

    @property
    def by(self) -> str:
        """What they are ranked by."""

    @property
    def weight(self) -> str:
        """What relevance is multiplied by."""

    @property
    def where(self) -> str | None:
        """SQL condition that chose those that were ranked."""

    @property
    def inputs(self) -> int:
        """Number of keys that were ranked."""

    @property
    def share(self) -> float | None:
        """Share of the positive relevance that a box holds."""

    @property
    def table(self) -> pa.Table:
        """One row per input."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the outputs, where they are known."""

    @property
    def images(self) -> Sequence[npt.NDArray[Any] | None]:
        """Input of each row."""

    @property
    def heatmaps(self) -> Sequence[npt.NDArray[Any] | None]:
        """Conditional relevance of each row's input."""


class ConceptLike(Protocol):
    """A unit that carries a class."""

    @property
    def name(self) -> str:
        """Its name in words."""

    @property
    def relevance(self) -> float:
        """Mean relevance."""

    @property
    def stderr(self) -> float:
        """Standard error of the mean."""

    @property
    def share(self) -> float:
        """Share of its layer."""

    @property
    def references(self) -> ReferencesLike:
        """Inputs in which it is most relevant."""


class ConceptsLike(Protocol):
    """Units that carry a class, as :meth:`nrm_graph.database.Database.concepts` finds them."""

    def __iter__(self) -> Iterator[ConceptLike]:
        """Go through them, the strongest first."""

    def __len__(self) -> int:
        """Count them."""

    @property
    def layer(self) -> str:
        """Their layer."""

    @property
    def where(self) -> str | None:
        """SQL condition that chose the class."""

    @property
    def keys(self) -> int:
        """Number of keys."""

    @property
    def weight(self) -> str:
        """What relevance is multiplied by."""


class CurvesLike(Protocol):
    """Faithfulness curves, as :func:`nrm_graph.evaluate.faithfulness` returns them."""

    @property
    def fractions(self) -> npt.NDArray[Any]:
        """Shares of the circuit that are ablated."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The circuit and its rivals."""

    @property
    def ablated(self) -> npt.NDArray[Any]:
        """Number of parts that are ablated at every share."""

    @property
    def by(self) -> str:
        """What is ablated."""

    @property
    def mode(self) -> str:
        """Whether the circuit is removed or kept."""

    @property
    def baseline(self) -> str:
        """What parts are ablated to."""

    def target_words(self) -> str:
        """Target of all inputs, in words."""

    @property
    def keys(self) -> Sequence[str]:
        """Keys of the held-out inputs."""

    @property
    def trained(self) -> int:
        """Number of inputs of the circuit."""

    def mean(
        self, method: str, score: str = "logit", *, normalized: bool = False
    ) -> npt.NDArray[Any]:
        """Mean score at every share."""

    def interval(
        self, method: str, score: str = "logit", *, normalized: bool = False
    ) -> npt.NDArray[Any]:
        """Bootstrap interval of the mean at every share."""

    def areas(self) -> pa.Table:
        """Area under each curve."""

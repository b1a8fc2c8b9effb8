"""Options of an extraction that hold for all inputs of a store: asked for, or as it was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError, StoreError
from nrm_graph.network import units
from nrm_graph.network.ir.input_spec import input_spec
from nrm_graph.network.ir.program import Program
from nrm_graph.network.layout import layout
from nrm_graph.network.tracing.torch_modules import plain
from nrm_graph.rules import composites
from nrm_graph.store.format import settings
from nrm_graph.store.format.words import counted
from nrm_graph.store.named_weights import described
from nrm_graph.store.stored_measure import input_spec_of
from nrm_graph.tables import pruning
from nrm_graph.tables.dense_edges import refuse_too_large
from nrm_graph.tables.plan import plan
from nrm_graph.tables.rounding import check_bits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

    from nrm_graph.network.ir.input_spec import InputSpec
    from nrm_graph.network.units import Partition, Resolution
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.rules.composites import Composite
    from nrm_graph.tables.plan import Plan

RESOLUTION = "auto"
"""Of a new store, where nothing else is asked for."""


@dataclass(frozen=True)
class StoreOptions:
    """What was asked for, as in :func:`nrm_graph.extract`; None is as the store was made."""

    composite: str | Composite | None
    bias: str | None
    resolution: str | Mapping[str, Resolution] | None
    max_edges: str | int
    coverage: float | None
    top: int | None
    mantissa_bits: int | None
    classes: Sequence[str] | None
    preprocessing: str | None
    weights: str | None

    def check(self) -> None:
        """Refuse what no store can have, before anything is read.

        Raises
        ------
        InputError, CompositeError
            Naming the first one.
        """
        pruning.check(self.coverage, self.top, self.max_edges)
        check_bits(self.mantissa_bits)
        if self.weights not in (None, "copy", "named"):
            raise InputError(f"weights must be 'copy' or 'named', found {self.weights!r}")
        chosen = None if self.composite == "auto" else self.composite
        composites.get(composites.DEFAULT if chosen is None else chosen, self.bias)
        if self.resolution is not None:
            units.check(self.resolution)

    @property
    def asked(self) -> dict[str, Any]:
        """Options that were asked for, by their names in ``store.json``."""
        values = {name: getattr(self, name) for name in settings.KEPT_OPTIONS}
        return {
            name: value
            for name, value in values.items()
            if value is not None and (name, value) not in _AS_IT_IS
        }


_AS_IT_IS = (("max_edges", "auto"), ("composite", "auto"))


@dataclass(frozen=True)
class Store:
    """A store that is to be made, or goes on.

    Attributes
    ----------
    folder : Path
        Its folder.
    meta : mapping or None
        Content of ``store.json``; None where there is none yet.
    options : StoreOptions
        What was asked for.
    """

    folder: Path
    meta: Mapping[str, Any] | None
    options: StoreOptions

    def composite(self, program: Program) -> Composite:
        """Rules: those that were asked for, or the store's, or those that fit the network.

        Raises
        ------
        StoreError
            If another reading of biases is asked for than that of the store.
        """
        asked, bias = self.options.composite, self.options.bias
        if self.meta is not None and asked in (None, "auto"):
            stored = composites.from_json(self.meta["composite"])
            if bias not in (None, stored.bias):
                raise StoreError(
                    f"biases are {stored.bias} in the store, found bias={bias!r}: leave it out to "
                    "go on so, or use another folder"
                )
            return stored
        if asked == "auto":
            asked = composites.fitting(layout(program).topology)
        return composites.get(composites.DEFAULT if asked is None else asked, bias)

    def option(self, name: str) -> Any:
        """Return what was asked for, or else the store's."""
        asked = getattr(self.options, name)
        return self.meta.get(name) if asked is None and self.meta is not None else asked

    def spec(self, program: Program, example: Sequence[Tensor]) -> InputSpec:
        """Return what the network takes; a store knows its masks by the first of its inputs."""
        spec = input_spec(program, example)
        if self.meta is not None:
            stored = input_spec_of(self.meta)
            mine, its = (
                (s.names, s.shapes, [kind == "float" for kind in s.kinds]) for s in (spec, stored)
            )
            if mine == its:
                return stored
        return spec

    def plan(self, net: Network) -> Plan:
        """Plan the tables.

        Raises
        ------
        InputError
            If the resolution does not fit the network, or a table is too large.
        """
        options, topology = self.options, net.layout.topology
        resolution = options.resolution
        if resolution is None:
            stored = None if self.meta is None else settings.read_units(self.folder, self.meta)
            resolution = stored or RESOLUTION
        partitions = units.resolve(topology, resolution)
        if self.meta is not None:
            tables = stored_plan(net, self.meta, partitions)
            self._refuse_other_limits(tables)
        else:
            limit = pruning.check(options.coverage, options.top, options.max_edges)
            most = pruning.most_rows(topology, partitions, options.max_edges, limit)
            tables = plan(net, partitions, pruning.limits(topology, limit), most)
        refuse_too_large(tables)
        return tables

    def _refuse_other_limits(self, tables: Plan) -> None:
        """Refuse a limit that is asked for, where an earlier release chose some by itself.

        Raises
        ------
        StoreError
            If the store prunes other pairs of layers than its coverage and top say.
        """
        assert self.meta is not None
        limit = pruning.check(self.meta["coverage"], self.meta["top"])
        usual = pruning.limits(tables.network.layout.topology, limit)
        asked = self.options.asked.keys() & {"coverage", "top", "max_edges"}
        if asked and tables.max_edges is None and tables.limits != usual:
            raise StoreError(
                f"the store leaves edges of {counted(len(tables.limits), 'pair')} of layers out, "
                f"as its release chose, and {', '.join(sorted(asked))} asks for another choice: "
                "leave it out to go on so, or use another folder"
            )

    def kept_options(self, tables: Plan) -> dict[str, Any]:
        """Options as ``store.json`` has them: asked for, or else the store's own.

        Raises
        ------
        InputError
            If ``max_edges`` is too small for the network.
        """
        options, asked = self.options, self.options.asked
        limit = pruning.check(options.coverage, options.top, options.max_edges)
        topology = tables.network.layout.topology
        values: dict[str, Any] = {
            "composite": tables.network.composite.to_json(),
            "coverage": limit.coverage,
            "top": options.top,
            "max_edges": tables.max_edges,
            "mantissa_bits": options.mantissa_bits,
            "classes": None if options.classes is None else list(options.classes),
            "preprocessing": options.preprocessing,
        }
        if "max_edges" in asked:
            values["max_edges"] = pruning.most_rows(
                topology, tables.partitions, options.max_edges, limit
            )
        if self.meta is not None:
            values |= {name: self.meta.get(name) for name in values if name not in asked}
        return values

    def named_weights(
        self, program: Program, model: torch.nn.Module | Program
    ) -> dict[str, Mapping[str, Any]]:
        """Describe the tensors that the store names and does not hold, as ``named``, if it does so.

        Raises
        ------
        InputError
            If a new store is to name those of a program, which knows none as a model's own.
        """
        stored = self.meta is not None and "named" in self.meta
        asked = self.options.weights or ("named" if stored else "copy")
        if asked == "copy":
            return {}
        if self.meta is not None:
            return {"named": self.meta.get("named", {})}
        if isinstance(model, Program):
            raise InputError(
                "weights='named' names the tensors of a model's state_dict(), found a traced "
                "program: give the model itself, or leave weights= out"
            )
        return {"named": described(program.weights, plain(model).state_dict())}


def stored_plan(net: Network, meta: Mapping[str, Any], partitions: Sequence[Partition]) -> Plan:
    """Plan the tables of a store as it was made."""
    most = meta.get("max_edges")
    limits = pruning.stored(meta, net.layout.topology) if most is None else {}
    return plan(net, partitions, limits, most)

"""What SQL says of units: the view ``units``, and ends of ``flows`` as text.

Nothing is stored for each unit: one row per layer, written into the query, says by which division
a number becomes an index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.network.topology import PSEUDO_UNITS
from nrm_graph.network.unit_coordinates import COORDINATES, coordinates, spelling
from nrm_graph.network.units import automatic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nrm_graph.network.topology import Topology

_AT_ONCE = 1 << 16  # units of a layer that are numbered at once
_UNITS = """
WITH places {places}, names {names}
SELECT layer_id, layer, unit, name, {coordinates}
FROM (SELECT *, CAST(unnest(range(start, least(start + {at_once}, n_units))) AS INTEGER) AS unit
      FROM (SELECT *, unnest(range(0, n_units, {at_once})) AS start
            FROM (SELECT layer_id, name AS layer, n_units FROM layers)
            JOIN places USING (layer_id)))
LEFT JOIN names USING (layer_id, unit)
"""
_FLOWS = """
WITH places {places}, names {names}
SELECT e.input_id, i.key, i.label, d.name AS dst, e.dst_unit, s.name AS src, e.src_unit,
       e.relevance, e.conditional, {dst} AS dst_name, {src} AS src_name
FROM edges e
JOIN inputs i ON i.input_id = e.input_id
JOIN layers d ON d.layer_id = e.dst_layer
JOIN layers s ON s.layer_id = e.src_layer
JOIN places dp ON dp.layer_id = e.dst_layer
JOIN places sp ON sp.layer_id = e.src_layer
LEFT JOIN names dn ON dn.layer_id = e.dst_layer AND dn.unit = e.dst_unit
LEFT JOIN names sn ON sn.layer_id = e.src_layer AND sn.unit = e.src_unit
"""


class UnitViews:
    """The views ``units`` and ``flows`` of a store.

    Parameters
    ----------
    topology : Topology
        Its layers.
    resolutions : sequence of str
        What the units of each are.
    names : mapping of int to mapping of int to str
        The user's own names of units, by layer and number.
    """

    def __init__(
        self,
        topology: Topology,
        resolutions: Sequence[str],
        names: Mapping[int, Mapping[int, str]],
    ) -> None:
        self._topology, self._resolutions, self._names = topology, resolutions, names
        self._axes = max([1, *(len(layer.shape) for layer in topology.layers)])

    def queries(self) -> dict[str, str]:
        """Return the queries of the views, by name."""
        columns = ", ".join(
            f'CAST({_divided("unit", name)} AS INTEGER) AS "{name}"' for name in COORDINATES
        )
        dst, src = self._text("d", "e.dst_unit"), self._text("s", "e.src_unit")
        common = {"places": self._places(), "names": self._named()}
        return {
            "units": _UNITS.format(coordinates=columns, at_once=_AT_ONCE, **common),
            "flows": _FLOWS.format(dst=dst, src=src, **common),
        }

    def _places(self) -> str:
        """Table of how the units of each layer are written and where they lie."""
        strides = [*COORDINATES, *(f"index{i}" for i in range(self._axes))]
        numbers = [f"{name}_{what}" for name in strides for what in ("step", "size")]
        rows = (f"({', '.join(values)})" for values in self._rows(strides))
        return _table(["layer_id", "written_before", "written_after", *numbers], rows)

    def _rows(self, strides: Sequence[str]) -> Iterator[list[str]]:
        usual = automatic(self._topology)
        for layer, resolution, kind in zip(
            self._topology.layers, self._resolutions, usual, strict=True
        ):
            written = spelling(layer, resolution)
            told = coordinates(layer, resolution, kind) | {
                f"index{i}": index for i, index in enumerate(written.indices)
            }
            pairs = (told.get(name) for name in strides)
            numbers = [("NULL", "NULL") if p is None else (f"{p.step}", f"{p.size}") for p in pairs]
            texts = [f"'{written.before}'", f"'{written.after}'"]
            yield [str(layer.layer_id), *texts, *(n for pair in numbers for n in pair)]

    def _named(self) -> str:
        """Table of the user's own names."""
        rows = [
            f"({layer_id}, {unit}, '{name.replace(chr(39), 2 * chr(39))}')"
            for layer_id, names in self._names.items()
            for unit, name in names.items()
        ]
        return _table(["layer_id", "unit", "name"], rows or ["(NULL, NULL, CAST(NULL AS VARCHAR))"])

    def _text(self, end: str, unit: str) -> str:
        """Expression of a unit as text, with the user's name in front where it bears one."""
        indices = ", ".join(_divided(unit, f"{end}p.index{i}") for i in range(self._axes))
        # concat_ws leaves out what a layer of fewer axes has not.
        text = (
            f"{end}.name || {end}p.written_before || concat_ws(', ', {indices}) || "
            f"{end}p.written_after"
        )
        pseudo = " ".join(f"WHEN {u} THEN '{words}'" for u, words in PSEUDO_UNITS.items())
        return (
            f"CASE WHEN {unit} < 0 THEN {end}.name || ' ' || CASE {unit} {pseudo} "
            f"ELSE CAST({unit} AS VARCHAR) END WHEN {end}n.name IS NULL THEN {text} "
            f"ELSE {end}n.name || ' (' || {text} || ')' END"
        )


def _table(columns: Sequence[str], rows: Iterator[str] | Sequence[str]) -> str:
    return f"({', '.join(columns)}) AS (VALUES {', '.join(rows)})"


def _divided(unit: str, stride: str) -> str:
    return f"{unit} // CAST({stride}_step AS BIGINT) % CAST({stride}_size AS BIGINT)"

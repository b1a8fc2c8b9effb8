"""Units get names of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import EventError, InputError
from nrm_graph.events.sets import NeuronSet
from nrm_graph.network.topology import Topology
from nrm_graph.network.units import partition
from nrm_graph.store.format import settings, unit_names
from nrm_graph.store.format.files import local_path
from nrm_graph.store.view import View

if TYPE_CHECKING:
    import os

    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.network.units import Partition


def name_units(
    store: str | os.PathLike[str] | View,
    layer: str,
    names: Mapping[int | NeuronSet, str | None],
) -> dict[int, str]:
    """Give units of a layer names of your own, which graphs, pictures and tables show.

    They are kept beside the tables of the store, in a file of the layer's own, and change no
    number: the store stays the same one, and copies of its folder have the names too.

    Parameters
    ----------
    store : path or Database
        The store.  A database that is open sees the names after :meth:`refresh`.
    layer : str
        Name or alias.
    names : mapping of int or NeuronSet to str or None
        Names by the unit's number in the store, or by a set that is one whole unit, such as
        ``ng.Layer("features.28")[12]``.  None or ``""`` takes a name away; other units keep theirs.
        At most 100 characters, on one line.

    Returns
    -------
    dict of int to str
        The names that units of the layer have now.

    Raises
    ------
    EventError
        If there is no such layer, or a set is no unit of it.
    InputError
        If it has no such unit, or what is given is no name.
    StoreError
        If there is no store, names that are there are damaged, or none can be written.

    Notes
    -----
    Of several processes that name units of one layer at once, the last one's names stay.

    Examples
    --------
    >>> name_units("vgg.nrm", "features.28", {99: "eyes", 12: "fur"})  # doctest: +SKIP
    """
    path = store.path if isinstance(store, View) else local_path(store)
    meta = settings.read_settings(path)
    info = Topology(settings.layers_of(meta), ()).layer(layer)
    row = meta["layers"][info.layer_id]
    if not isinstance(names, Mapping) or not names:
        raise InputError(f"names must be a mapping such as {{99: 'eyes'}}, found {names!r:.100}")
    units = None
    if any(isinstance(unit, NeuronSet) for unit in names):
        units = partition(info, settings.read_units(path, meta)[info.name])
    chosen: dict[int, str] = {}
    for key, name in names.items():
        unit = _number(key, info, units, row["n_units"])
        fault = None if name in (None, "") else unit_names.fault_of(name)
        if fault is not None:
            raise InputError(f"{name!r:.110} cannot name unit {unit} of {info.name}: {fault}")
        chosen[unit] = name or ""
    after = unit_names.read_layer(path, meta, info.layer_id) | chosen
    after = {unit: name for unit, name in sorted(after.items()) if name}
    unit_names.write_layer(path, row, after)
    return after


def _number(key: Any, info: LayerInfo, units: Partition | None, count: int) -> int:
    """Return the number of a unit."""
    if units is not None and isinstance(key, NeuronSet):
        if key.layer not in (info.name, *info.aliases):
            raise EventError(f"{key!r} is a set of another layer than {info.name}")
        mask = key.mask(info.shape, units)
        numbers = np.unique(units.labels[mask])
        if len(numbers) != 1 or not np.array_equal(mask, units.labels == numbers[0]):
            raise EventError(
                f"{key!r} is not one unit of {info.name}, whose units are of the kind "
                f"{units.resolution!r} in the store: expected exactly the neurons of one"
            )
        return int(numbers[0])
    try:
        unit = -1 if isinstance(key, bool) else index(key)
    except TypeError:
        unit = -1
    if not 0 <= unit < count:
        raise InputError(f"{info.name} has the units 0 to {count - 1:,}, found {key!r:.100}")
    return unit

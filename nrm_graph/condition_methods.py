"""What a database does with conditions: tables given an event, stored beside the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    import torch

    from nrm_graph.database import Database
    from nrm_graph.events.sets import Event


class Conditions:
    """Conditions of a store; see :class:`nrm_graph.database.Database`."""

    def materialize(
        self,
        event: Event,
        *,
        name: str,
        where: str | None = None,
        inputs: Sequence[str | int] | None = None,
        device: str | torch.device = "cpu",
        progress: bool = True,
    ) -> None:
        """Store the tables of many inputs, conditioned on an event, for SQL.

        They become ``<name>_nodes`` and ``<name>_edges``, with the columns of ``nodes`` and
        ``edges``, where a relevance is R(node and event) / R(event); and ``<name>_inputs``, with
        ``input_id``, ``relevance`` (R(event)), its ``error``, ``amplification``, ``absorbed``,
        ``status`` (``defined`` or ``undefined``) and ``reason``.  Inputs of which R(event) is below
        rounding are undefined: they have no nodes and edges, and ``reason`` says why.

        The same call again goes on where the last one stopped, and adds inputs that were
        extracted since; several processes may do so at once.

        Parameters
        ----------
        event : Event
            The condition.
        name : str
            At most 60 ASCII letters, digits and underscores, a letter first; unlike the names
            of other conditions, letter case ignored.
        where : str, optional
            SQL condition over ``inputs`` that chooses the inputs; all by default.  Part of the
            condition, as the event is.
        inputs : sequence of key or input_id, optional
            Compute only these of the chosen inputs in this call.
        device : str or torch.device
            As in :func:`nrm_graph.measure`.
        progress : bool
            Show a bar where standard error is a terminal.

        Raises
        ------
        InputError
            If the name cannot be used, no input is chosen, one is not there, or the store keeps no
            tensors.
        EventError
            If the event does not fit the network.
        QueryError
            If ``where`` is not one SQL condition over ``inputs``.
        StoreError
            If the name has another event or ``where``, or the store is damaged.
        SystemExit
            At SIGTERM and SIGHUP; what is computed is committed first, as at Ctrl-C.

        Notes
        -----
        Units, pruning and rounding are those of the store: a pair of layers that it prunes is
        pruned by the same coverage and number of edges, of the conditioned relevance, and the
        rest stands in rows of the pseudo-unit -3.
        """
        from nrm_graph.store.materialize import materialize

        db = cast("Database", self)
        try:
            materialize(db, event, name, where, inputs, device, progress)
        finally:
            db._refresh_conditions()

    def drop(self, name: str) -> None:
        """Drop a condition and its tables.

        Another event may be materialized under its name then.  Databases that were opened before
        keep its tables until they are refreshed, or until a compaction deletes the files, by age.

        Parameters
        ----------
        name : str
            The condition, as :meth:`conditions` lists it.

        Raises
        ------
        InputError
            If there is none of this name.
        StoreError
            If it is being materialized, a compaction or deletion is at work, or the store is
            damaged.
        """
        from nrm_graph.store.write.dropping import drop

        db = cast("Database", self)
        drop(db.path, name)
        db._refresh_conditions()

    def conditions(self) -> pa.Table:
        """Conditions that were materialized, one row each.

        Returns
        -------
        pyarrow.Table
            Columns ``name``, ``event``, ``where``, ``inputs`` (their number), ``undefined`` (of
            how many R(event) is below rounding) and ``mean_relevance`` (of R(event)).
        """
        from nrm_graph.store.materialize import summary

        return summary(cast("Database", self))

"""What a database answers from its tables: graphs and statistics, without running a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    import networkx as nx

    from nrm_graph.database import Database
    from nrm_graph.events import Event


class Circuits:
    """Graphs from the tables of a store; see :class:`nrm_graph.database.Database`."""

    def _database(self) -> Database:
        return cast("Database", self)

    def subgraph(
        self, key: str | int, target: int | tuple[Any, ...] | None = None, *, top: int = 200
    ) -> nx.DiGraph:
        """Return the strongest stored edges of one input as a graph.

        It needs neither torch nor the input: where the store is complete and lossless the graph is
        that of ``db.measure(key).subgraph(top)``, which is computed from the program.

        Parameters
        ----------
        key : str or int
            Key or input_id.
        target : int or tuple, optional
            Needed where the key has several targets.
        top : int
            Number of edges.

        Returns
        -------
        networkx.DiGraph
            As of :func:`nrm_graph.graph.subgraph`; what was pruned is there as edges of the
            pseudo-unit -3.

        Raises
        ------
        InputError
            If there is no such input, or it has several targets.
        StoreError
            If the store is damaged.
        """
        from nrm_graph import graph

        db = self._database()
        identity = db._pair(key, target)
        nodes, edges = (db._snapshot.rows(identity, table) for table in ("nodes", "edges"))
        return graph.subgraph(db.topology, nodes, edges, top, partitions=db.partitions)

    def circuit(
        self,
        where: str | None = None,
        *,
        inputs: Sequence[str | int] | None = None,
        top: int = 200,
        given: str | Event | None = None,
        layers: Sequence[str] | None = None,
        weight: str = "unit",
        per_input: bool = False,
        target: int | tuple[Any, ...] | None = None,
        mixed_targets: bool = False,
        engine: str = "local",
    ) -> nx.DiGraph:
        r"""Return the strongest edges of a group of inputs, with statistics.

        The measure of a group is the mixture of its inputs' measures: relevances are means over
        all inputs, absent rows being exact zeros, and conditionals are ratios of means,
        sum of R(A & B) / sum of R(B).

        Parameters
        ----------
        where : str, optional
            SQL condition over ``inputs``, such as ``"label = 'cat'"``; all by default.
        inputs : sequence of key or input_id, optional
            Of the chosen inputs only these.
        top : int
            Number of edges, those of the largest \|mean\|.
        given : str or Event, optional
            A condition that :meth:`materialize` made, by its name or event.
        layers : sequence of str, optional
            Only edges between these layers.
        weight : "unit" or "logit"
            With ``logit``, relevance times the input's logit is averaged.
        per_input : bool
            With ``given``: the mean of the inputs' own conditional measures, over the inputs
            where they are defined.
        target : int or tuple, optional
            Only inputs of this target.
        mixed_targets : bool
            Allow a group of which different outputs are explained.
        engine : "local" or "ray"
            Where the sums are computed; ``ray`` needs ``nrm-graph[ray]``.

        Returns
        -------
        networkx.DiGraph
            As of :meth:`nrm_graph.exact.Measure.subgraph`.  ``relevance`` of nodes and edges is
            the mean; further ``std`` (over inputs) and ``stderr`` (of the mean), not of a single
            input; ``inputs``, in how many it is not 0; ``agreement``, the share of those that
            have the sign of the mean; and of edges ``top_share``, the share of inputs of which
            the edge is among their own ``top`` strongest.  ``graph`` holds ``inputs`` (their
            number), ``keys``, ``target`` (not where they differ), ``weight``, ``where``,
            ``share`` (of the sum of \|mean\| over all edges that the graph keeps) and, as means,
            ``bias``, ``stabilizer``, ``remainder``, their sum ``absorbed``, and ``pruned``; with
            ``given`` further ``undefined``, the number of inputs whose conditional measure is.

            Of an edge in a pair of layers that the store prunes, of which an input has no row,
            ``missing`` says how many have none; its mean is that of what is stored, and
            statistics are left out.

        Raises
        ------
        InputError
            If no input is chosen, their targets differ, the layers have no edges between them, or
            the condition is not materialized for all of them.
        QueryError
            If ``where`` is not one SQL condition over ``inputs``.
        UndefinedConditional
            If the group's R(condition) is below rounding.

        Notes
        -----
        ``std`` of a ratio of means is that of the usual linearisation (Cochran, Sampling
        Techniques, 1977, section 2.11).
        """
        from nrm_graph.circuits.circuit import circuit
        from nrm_graph.circuits.engines import named

        return circuit(
            self._database(),
            where,
            inputs=inputs,
            top=top,
            given=given,
            layers=layers,
            weight=weight,
            per_input=per_input,
            target=target,
            mixed_targets=mixed_targets,
            engine=named(engine),
        )

"""What a database answers from its tables: graphs and statistics, without running a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    import networkx as nx
    import pyarrow as pa

    from nrm_graph.circuits.clusters import Clusters
    from nrm_graph.circuits.contrast import Contrast
    from nrm_graph.circuits.references import References
    from nrm_graph.circuits.stability import Stability
    from nrm_graph.database import Database
    from nrm_graph.events.sets import Event, NeuronSet
    from nrm_graph.network.targets import Sought


class Circuits:
    """Graphs from the tables of a store; see :class:`nrm_graph.database.Database`."""

    def _database(self) -> Database:
        return cast("Database", self)

    def subgraph(
        self, key: str | int, target: Sought | None = None, *, top: int = 200
    ) -> nx.DiGraph:
        """Return the strongest stored edges of one input as a graph.

        It needs neither torch nor the input: where the store is complete and lossless the graph is
        that of ``db.measure(key).subgraph(top)``, which is computed from the program.

        Parameters
        ----------
        key : str or int
            Key or input_id.
        target : int, tuple, mapping or str, optional
            Needed where the key has several targets.
        top : int
            Number of edges.

        Returns
        -------
        networkx.DiGraph
            As of :func:`nrm_graph.graphs.subgraph.subgraph`; what was pruned is there as edges of
            the pseudo-unit -3.  ``graph["meaning"]`` says what a positive number speaks for, and
            ``graph["flags"]`` what else to know, in short where the numbers are not stored.

        Raises
        ------
        InputError
            If there is no such input, or it has several targets.
        StoreError
            If the store is damaged.
        """
        from nrm_graph.graphs import subgraph as graph
        from nrm_graph.propagation import flags
        from nrm_graph.store import lookups
        from nrm_graph.tables.arrow import absorbed

        db = self._database()
        identity = lookups.pair(db, key, target)
        nodes, edges = (db._snapshot.rows(identity, table) for table in ("nodes", "edges"))
        found = graph.subgraph(db.topology, nodes, edges, top, resolutions=db.resolutions)
        logit = float(db._snapshot.facts(identity)["logit"])
        told = flags.stored(logit, absorbed(nodes), db._snapshot.entries[identity].flags)
        found.graph |= {"meaning": flags.meaning(logit), "flags": told}
        return found

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
        target: Sought | None = None,
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
            Number of edges, at most 999,999, those of the largest \|mean\|.
        given : str or Event, optional
            A condition that :meth:`materialize` made, by its name or event.  Inputs of which
            R(condition) is below rounding are computed from the stored program, at every call.
        layers : sequence of str, optional
            Only edges between these layers.
        weight : "unit" or "logit"
            With ``logit``, relevance times the input's logit is averaged.
        per_input : bool
            With ``given``: the mean of the inputs' own conditional measures, over the inputs
            where they are defined.
        target : int, tuple, mapping or str, optional
            Only inputs of this target: a flat index, a place such as (position, class), weights of
            these such as ``{3: 1, 5: -1}``, or their text in ``inputs``.
        mixed_targets : bool
            Allow a group of which different outputs are explained.
        engine : "local" or "ray"
            Where the sums are computed; ``ray`` needs ``nrm-graph[ray]``.

        Returns
        -------
        networkx.DiGraph
            As of :meth:`nrm_graph.measures.measure.Measure.subgraph`.  ``relevance`` of nodes and
            edges is the mean; further ``std`` (over inputs) and ``stderr`` (of the mean), not of a
            single input; ``inputs``, in how many it is not 0; ``agreement``, the share of those
            that have the sign of the mean; and of edges ``top_share``, the share of inputs of which
            the edge is among their own ``top`` strongest.  ``graph`` holds ``inputs`` (their
            number), ``keys``, ``target`` (not where they differ), ``weight``, ``where``, ``share``
            (of the sum of \|mean\| over all stored edges, that the graph keeps) and, as means,
            ``bias``, ``stabilizer``, ``remainder``, their sum ``absorbed``, and ``pruned``; with
            ``given`` further ``undefined``, the number of inputs whose conditional is.

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

    def contrast(
        self,
        a: str | None,
        b: str | None,
        *,
        edges: int = 1000,
        weight: str = "logit",
        target: Sought | None = None,
        mixed_targets: bool = False,
        adjust: str = "bh",
        draws: int = 10_000,
        seed: int = 0,
    ) -> Contrast:
        """Compare two groups of inputs, edge by edge; see :mod:`nrm_graph.circuits.contrast`.

        Examples
        --------
        >>> found = db.contrast("label = 'cat'", "label = 'dog'", target=3)  # doctest: +SKIP
        >>> found.table, found.graph(top=50), found.notes  # doctest: +SKIP
        """
        from nrm_graph.circuits.contrast import contrast

        return contrast(
            self._database(),
            a,
            b,
            edges=edges,
            weight=weight,
            target=target,
            mixed_targets=mixed_targets,
            adjust=adjust,
            draws=draws,
            seed=seed,
        )

    def stability(
        self,
        where: str | None = None,
        *,
        top: int = 200,
        weight: str = "unit",
        target: Sought | None = None,
        mixed_targets: bool = False,
        splits: int = 100,
        draws: int = 1000,
        level: float = 0.95,
        seed: int = 0,
    ) -> Stability:
        """Tell how a circuit holds in halves and resamples of its keys.

        See :func:`nrm_graph.circuits.stability.stability`.
        """
        from nrm_graph.circuits.stability import stability

        return stability(
            self._database(),
            where,
            top=top,
            weight=weight,
            target=target,
            mixed_targets=mixed_targets,
            splits=splits,
            draws=draws,
            level=level,
            seed=seed,
        )

    def clusters(
        self,
        where: str | None = None,
        *,
        k: int | None = None,
        edges: int = 500,
        target: Sought | None = None,
        mixed_targets: bool = False,
        seed: int = 0,
    ) -> Clusters:
        """Divide the inputs of a group by how their relevance flows.

        See :func:`nrm_graph.circuits.clusters.clusters`.
        """
        from nrm_graph.circuits.clusters import clusters

        return clusters(
            self._database(),
            where,
            k=k,
            edges=edges,
            target=target,
            mixed_targets=mixed_targets,
            seed=seed,
        )

    def prototypes(
        self,
        circuit: nx.DiGraph,
        where: str | None = None,
        *,
        k: int = 5,
        target: Sought | None = None,
    ) -> pa.Table:
        """Find the inputs nearest to a circuit, and those farthest from it.

        See :func:`nrm_graph.circuits.prototypes.prototypes`.
        """
        from nrm_graph.circuits.prototypes import prototypes

        return prototypes(self._database(), circuit, where, k=k, target=target)

    def references(
        self,
        event: NeuronSet,
        *,
        k: int = 9,
        by: str = "relevance",
        where: str | None = None,
        weight: str = "unit",
        share: float | None = 0.5,
    ) -> References:
        """Find the inputs for which a unit is most relevant, or most active.

        See :func:`nrm_graph.circuits.references.references`.
        """
        from nrm_graph.circuits.references import references

        return references(
            self._database(), event, k=k, by=by, where=where, weight=weight, share=share
        )

"""Circuits: what many inputs have in common, with statistics.

The measure of a group of inputs is the mixture of theirs, so its relevances are means, and its
conditionals ratios of means.  Everything is aggregated from the tables of a store
(:mod:`nrm_graph.circuits.partials` holds the SQL); nothing of this package runs a network but what
says so.
"""

"""The parser of the command line: its commands in the order in which help shows them."""

from __future__ import annotations

import argparse

from nrm_graph._version import __version__
from nrm_graph.cli.commands import extraction, many_inputs, one_input, store
from nrm_graph.cli.options import EXIT_CODES

COMMANDS = (
    extraction.add_demo,
    extraction.add_extract,
    store.add_info,
    store.add_sql,
    one_input.add_relevance,
    one_input.add_paths,
    many_inputs.add_materialize,
    one_input.add_subgraph,
    many_inputs.add_circuit,
    many_inputs.add_contrast,
    store.add_compact,
    store.add_delete,
    store.add_drop,
    store.add_verify,
)
"""What adds each command."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = argparse.ArgumentParser(
        prog="nrm-graph",
        description="Turn a trained network and inputs into a relevance database, and ask it.",
        epilog=f"start here:\n  nrm-graph demo\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"nrm-graph {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return whole

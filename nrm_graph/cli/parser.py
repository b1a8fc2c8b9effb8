"""The command line as a whole: its commands in the order in which help shows them."""

from __future__ import annotations

import click

from nrm_graph._version import __version__
from nrm_graph.cli.commands import (
    examples,
    explore,
    extraction,
    many_inputs,
    one_input,
    reduced,
    store,
)
from nrm_graph.cli.options import EXIT_CODES, Command

COMPLETION = "_NRM_GRAPH_COMPLETE"
"""The variable in which a shell asks for completions."""

COMMANDS = (
    extraction.demo,
    extraction.extract,
    store.info,
    store.sql,
    explore.explore,
    one_input.relevance,
    one_input.paths,
    reduced.reduce,
    many_inputs.materialize,
    one_input.subgraph,
    many_inputs.circuit,
    many_inputs.contrast,
    examples.concepts,
    examples.references,
    store.name,
    store.compact,
    store.delete,
    store.drop,
    store.verify,
)

_EPILOG = f"""\
Start here:
  nrm-graph demo

Completion of commands, options, choices and files, by a line in the file that
the shell reads first:
  bash  eval "$({COMPLETION}=bash_source nrm-graph)"
  zsh   eval "$({COMPLETION}=zsh_source nrm-graph)"
  fish  {COMPLETION}=fish_source nrm-graph | source

{EXIT_CODES}"""


class _Group(click.Group):
    """Commands in the order in which they are given."""

    format_epilog = Command.format_epilog

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Group,
    commands=COMMANDS,
    epilog=_EPILOG,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, message=f"nrm-graph {__version__}")
def cli() -> None:
    """Turn a trained network and inputs into a relevance database, and ask it."""

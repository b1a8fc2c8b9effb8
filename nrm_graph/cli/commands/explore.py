"""The command that shows a store in a web browser: ``explore``."""

from __future__ import annotations

import click

from nrm_graph.cli.options import FILE, command, store, weights


@command("nrm-graph explore relevance.nrm")
@store
@click.argument("other", type=FILE, required=False)
@click.option(
    "--port", type=int, default=0, metavar="N", help="port on 127.0.0.1; 0 is any free one"
)
@click.option("--no-browser", is_flag=True, help="print the link, and open no browser")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="HOST",
    help="a name, beside localhost and 127.0.0.1, by which a tunnel shows the page; several times "
    "for several",
)
@weights
def explore(
    store: str,
    other: str | None,
    port: int,
    no_browser: bool,
    allow_host: tuple[str, ...],
    weights: tuple[str, ...],
) -> None:
    """Show a store in a web browser, where a click conditions the measure.

    Prints the link that opens the page, and serves it until Ctrl-C. The page is for this machine
    alone; to see it from another, run there ssh -L PORT:127.0.0.1:PORT HOST and open the link. A
    second store is compared with the first. Needs pip install 'nrm-graph[explorer]'.
    """
    from nrm_graph import database
    from nrm_graph.explorer.serve import explore, open_browser

    with (
        database.open(store, weights=weights or None) as db,
        explore(db, other, port=port, browser=False, allow_host=allow_host) as explorer,
    ):
        try:
            click.echo("Ctrl-C ends it", err=True)
            print(explorer.url, flush=True)
            if not no_browser:
                open_browser(explorer.url)
            explorer.wait()
        except KeyboardInterrupt:  # the way to end it, and no failure
            return

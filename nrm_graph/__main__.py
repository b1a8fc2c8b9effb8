"""``python -m nrm_graph``: the command line."""

import sys

from nrm_graph.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

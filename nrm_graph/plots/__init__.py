"""Pictures of measures and subgraphs.

The only part that imports matplotlib; it keeps no global state and leaves pyplot alone.  Every
function takes axes or makes a figure of its own, and returns the axes:
``ax.figure.savefig(path)`` writes the picture.
"""

from nrm_graph.plots.circuit import plot_circuit, save_subgraph
from nrm_graph.plots.common import NEGATIVE, NEUTRAL, POSITIVE, SIGNED
from nrm_graph.plots.concepts import plot_concepts
from nrm_graph.plots.faithfulness import plot_faithfulness
from nrm_graph.plots.flow import plot_flow
from nrm_graph.plots.gallery import plot_references
from nrm_graph.plots.heatmap import plot_heatmap
from nrm_graph.plots.report import plot_report
from nrm_graph.plots.subgraph import plot_subgraph

__all__ = [
    "NEGATIVE",
    "NEUTRAL",
    "POSITIVE",
    "SIGNED",
    "plot_circuit",
    "plot_concepts",
    "plot_faithfulness",
    "plot_flow",
    "plot_heatmap",
    "plot_references",
    "plot_report",
    "plot_subgraph",
    "save_subgraph",
]


def __dir__() -> list[str]:
    return sorted(__all__)

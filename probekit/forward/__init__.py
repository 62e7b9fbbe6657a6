"""Touching the forward pass: sites, capture, edit, substitution, the early stop, and the layer map.

Functions of a model and its anatomy. Every hook goes on in a context manager and comes off on every path out.
"""

from probekit.forward.axes import Axes
from probekit.forward.capture import capture
from probekit.forward.continuation import Caching, Continuation, is_ids
from probekit.forward.edit import edited, unedited
from probekit.forward.generation import generate
from probekit.forward.graphs import Graphed, Step, can_be_captured
from probekit.forward.head import head_width, reads_the_last_block, unembed
from probekit.forward.layer_map import LayerMap
from probekit.forward.layout import Layout, measure_axes, probe_ids, vocabulary_size
from probekit.forward.padding import Padding, padded
from probekit.forward.several_sites import LayerMaps
from probekit.forward.sites import Site, expand_expression, expand_sites, find_site, site_names
from probekit.forward.substitution import close, reads_ids
from probekit.forward.trace import Trace

__all__ = [
    "Axes",
    "Caching",
    "Continuation",
    "Graphed",
    "LayerMap",
    "LayerMaps",
    "Layout",
    "Padding",
    "Site",
    "Step",
    "Trace",
    "can_be_captured",
    "capture",
    "close",
    "edited",
    "expand_expression",
    "expand_sites",
    "find_site",
    "generate",
    "head_width",
    "is_ids",
    "measure_axes",
    "padded",
    "probe_ids",
    "reads_ids",
    "reads_the_last_block",
    "site_names",
    "unedited",
    "unembed",
    "vocabulary_size",
]

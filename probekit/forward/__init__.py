"""Touching the forward pass: sites, capture, edit, substitution, the early stop, and the layer map.

Functions of a model and its anatomy. Every hook goes on in a context manager and comes off on every path out.
"""

from probekit.forward.capture import capture
from probekit.forward.edit import edited
from probekit.forward.generation import generate
from probekit.forward.layer_map import LayerMap
from probekit.forward.rest import at_rest
from probekit.forward.sites import Site, expand_sites, find_site, site_names

__all__ = ["LayerMap", "Site", "at_rest", "capture", "edited", "expand_sites", "find_site", "generate", "site_names"]

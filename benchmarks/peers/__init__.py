"""Every way of doing the same work: by hand, with probekit, and with each peer, one module each.

A peer is used in the fastest way that its own documentation recommends, and on the same weights. What it cannot do it
says by `NotPossibleError`, with the reason, which then stands in the table in place of its time.
"""

from benchmarks.peers.known import PEERS, sides
from benchmarks.peers.peer import Absent, Map, Model, NotPossibleError, Peer

__all__ = ["PEERS", "Absent", "Map", "Model", "NotPossibleError", "Peer", "sides"]

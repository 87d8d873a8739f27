"""How many connections a transfer needs to fill its link. Pure."""

from __future__ import annotations

import math
from typing import Final

#: What one connection keeps on its way: two thirds of the 4 MB that Linux lets a send buffer grow to, because
#: a buffer's bookkeeping counts against it. Measured: 2.2 to 2.7 MB (`make bench-wan`).
_WINDOW_BYTES: Final = 5 << 19
#: More would cost the owner more than it brings; it refuses readers beyond 512 connections.
_CONNECTIONS_MAX: Final = 32
#: Of a link that nothing has come over yet.
_UNKNOWN_RTT_S: Final = 0.04


def connections_for(
    *, capacity_bps: float, rtt_s: float, transfers: int, connections_min: int
) -> int:
    """
    Connections of one of several transfers that share a link: its bandwidth times its round trip, in windows.

    Args:
        capacity_bps: Of the link, bits per second.
        rtt_s: Round trip; 0 while it is not known.
        transfers: That run over it, this one included; each has its part.
        connections_min: Below which it does not go.

    Returns:
        At least `connections_min`, and beyond that at most 32.
    """
    on_their_way_bytes = capacity_bps / 8 * (rtt_s or _UNKNOWN_RTT_S)
    needed = math.ceil(on_their_way_bytes / _WINDOW_BYTES / max(1, transfers))
    return max(connections_min, min(_CONNECTIONS_MAX, needed))

"""Connected components of a graph that comes in chunks, so that memory holds its vertices but not its edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Numbers = npt.NDArray[Any]
_VERTICES_AT_ONCE = 2**20
BYTES_PER_EDGE = 120
"""What `join` needs for each edge of a chunk: the numbers of both ends, and scipy's matrices and their copies."""


def number_type(size: int) -> type[np.signedinteger[Any]]:
    """Return the smallest type that numbers so many vertices."""
    return np.int32 if size <= np.iinfo(np.int32).max else np.int64


class Components:
    """Which of the vertices 0 to `size` - 1 are connected by the edges so far.

    `labels` has of each vertex the smallest vertex of its component.
    """

    def __init__(self, size: int) -> None:
        self.labels: Numbers = np.arange(size, dtype=number_type(size))
        self._scratch = np.zeros_like(self.labels)

    def join(self, edges: Numbers) -> None:
        """Connect the two vertices in each row of `edges`."""
        roots = self.labels[edges]
        roots = roots[roots[:, 0] != roots[:, 1]]
        if not len(roots):
            return
        # The graph of the roots alone, numbered without gaps and in their order.
        self._scratch[:] = 0
        self._scratch[roots] = 1
        vertices = np.flatnonzero(self._scratch)
        self._scratch[vertices] = np.arange(len(vertices))
        ends = self._scratch[roots]
        pairs = (np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1]))
        graph = coo_array(pairs, shape=(len(vertices), len(vertices)))
        count, found = connected_components(graph, directed=False)
        smallest = np.empty(count, dtype=vertices.dtype)
        # Of several values for one place the last one stays: the smallest vertex, since they come from the greatest on.
        smallest[found[::-1]] = vertices[::-1]
        self.labels[vertices] = smallest[found]
        self._contract()

    def _contract(self) -> None:
        """Point every vertex at its root: one step, since all pointed at what was a root before."""
        for start in range(0, len(self.labels), _VERTICES_AT_ONCE):
            part = slice(start, start + _VERTICES_AT_ONCE)
            self.labels[part] = self.labels[self.labels[part]]

"""RFC 6962 Merkle trees: tree hash and inclusion proofs, the RFC's construction unchanged.

Leaves are hashed with a 0x00 prefix, nodes with 0x01, so that no leaf can pass for a node (section
2.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Accumulator:
    """The tree hash of a growing list, in memory logarithmic in its length."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[tuple[int, bytes]] = []  # (height, hash) of complete subtrees

    def add(self, data: bytes) -> None:
        """Append a leaf."""
        height, value = 0, leaf_hash(data)
        while self._peaks and self._peaks[-1][0] == height:
            value = node_hash(self._peaks.pop()[1], value)
            height += 1
        self._peaks.append((height, value))
        self.size += 1

    def root(self) -> bytes:
        """Tree hash of what was added so far (the empty tree is the hash of nothing)."""
        if not self._peaks:
            return hashlib.sha256(b"").digest()
        value = self._peaks[-1][1]
        for _, peak in reversed(self._peaks[:-1]):
            value = node_hash(peak, value)
        return value


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[list[bytes], bytes]:
    """Audit path of leaf `index` (section 2.1.1) and the root.

    Args:
        leaves: Leaf hashes.
        index: 0-based.
    """
    level, place = list(leaves), index
    path: list[bytes] = []
    while len(level) > 1:
        sibling = place ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        level = [
            node_hash(level[i], level[i + 1]) if i + 1 < len(level) else level[i]
            for i in range(0, len(level), 2)
        ]
        place //= 2
    return path, level[0]


def verify_inclusion(
    leaf: bytes, index: int, tree_size: int, path: Sequence[bytes], root: bytes
) -> bool:
    """Whether `path` leads from `leaf` to `root` (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < tree_size:
        return False
    place, last, value = index, tree_size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if place & 1 or place == last:
            value = node_hash(sibling, value)
            while not place & 1 and place:
                place >>= 1
                last >>= 1
        else:
            value = node_hash(value, sibling)
        place >>= 1
        last >>= 1
    return last == 0 and value == root

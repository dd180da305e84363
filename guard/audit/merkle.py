"""Merkle trees by RFC 6962: hashes of entries and trees, and proofs that one entry or an older tree is part of a tree.

All functions take and return raw SHA-256 digests of 32 bytes. Written here, because the log needs a few short
functions; a test compares them with the vectors of the reference implementation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

#: The root of the tree without entries.
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of one entry.

    >>> leaf_hash(b"").hex()[:16]
    '6e340b9cffb37a98'
    """
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node; its prefix distinguishes it from the hashes of entries."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class GrowingTree:
    """The complete subtrees of a tree that grows, largest first: all that a root needs, in logarithmic memory.

    >>> tree = GrowingTree()
    >>> tree.append(leaf_hash(b"one"))
    >>> tree.size, tree.root() == leaf_hash(b"one")
    (1, True)
    """

    def __init__(self, size: int = 0, subtrees: Iterable[bytes] = ()) -> None:
        self.size = size
        self.subtrees = list(subtrees)

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next entry."""
        node, size = leaf, self.size
        while size & 1:
            node, size = node_hash(self.subtrees.pop(), node), size >> 1
        self.subtrees.append(node)
        self.size += 1

    def root(self) -> bytes:
        """Return the root of the tree so far."""
        if not self.subtrees:
            return EMPTY_ROOT
        *rest, node = self.subtrees
        for left in reversed(rest):
            node = node_hash(left, node)
        return node


def root_hash(leaves: Sequence[bytes]) -> bytes:
    """Return the root over the entries' hashes, in order."""
    tree = GrowingTree()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the audit path of one entry, from the leaf upwards (RFC 6962, section 2.1.1).

    Args:
        leaves: of the whole tree.
        index: of the entry, from 0.
    """
    _check_range(index, len(leaves))
    path: list[bytes] = []
    while len(leaves) > 1:
        split = _split(len(leaves))
        left, right = leaves[:split], leaves[split:]
        path.append(root_hash(right if index < split else left))
        leaves, index = (left, index) if index < split else (right, index - split)
    return path[::-1]


def includes(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Return whether a proof shows that a leaf is entry ``index`` of the tree of ``size`` entries with this root."""
    if not 0 <= index < size:
        return False
    node, at, last = leaf, index, size - 1
    for sibling in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            node = node_hash(sibling, node)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and node == root


def consistency_proof(leaves: Sequence[bytes], older: int) -> list[bytes]:
    """Return the proof that the tree of the first ``older`` entries is the beginning of this one (section 2.1.2)."""
    _check_range(older - 1, len(leaves))
    return _subproof(leaves, older, whole=True)


def extends(older: int, older_root: bytes, *, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Return whether a proof shows that a tree only added entries to an older one (RFC 9162, section 2.1.4.2)."""
    if not 0 < older <= size:
        return False
    if older == size:
        return not proof and older_root == root
    path = [older_root, *proof] if older & (older - 1) == 0 else list(proof)
    if not path:
        return False
    at, last = older - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and first == older_root and second == root


def _subproof(leaves: Sequence[bytes], older: int, *, whole: bool) -> list[bytes]:
    if older == len(leaves):
        return [] if whole else [root_hash(leaves)]
    split = _split(len(leaves))
    left, right = leaves[:split], leaves[split:]
    if older <= split:
        return [*_subproof(left, older, whole=whole), root_hash(right)]
    return [*_subproof(right, older - split, whole=False), root_hash(left)]


def _split(size: int) -> int:
    """Return the largest power of two below the size."""
    return 1 << (size - 1).bit_length() - 1


def _check_range(index: int, size: int) -> None:
    if not 0 <= index < size:
        raise IndexError(f"entry {index} of {size}")

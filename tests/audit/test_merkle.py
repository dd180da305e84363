"""Merkle trees: the vectors of RFC 6962's reference implementation, and proofs for trees of every small size."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.audit import merkle
from guard.audit.merkle import GrowingTree, consistency_proof, extends, includes, inclusion_proof, leaf_hash, root_hash

#: Inputs and roots of Certificate Transparency's own tests (merkletree/merkle_tree_test.cc).
ENTRIES = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
ENTRIES.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def plain_root(leaves: list[bytes]) -> bytes:
    """The definition of RFC 6962, section 2.1, word for word."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + plain_root(leaves[:split]) + plain_root(leaves[split:])).digest()


def leaves_of(size: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(size)]


def test_roots_are_those_of_the_reference_implementation() -> None:
    leaves = [leaf_hash(entry) for entry in ENTRIES]
    assert [root_hash(leaves[: size + 1]).hex() for size in range(8)] == ROOTS
    assert root_hash([]) == merkle.EMPTY_ROOT


@given(st.integers(0, 300))
def test_a_growing_tree_has_the_root_of_the_definition(size: int) -> None:
    leaves = leaves_of(size)
    assert root_hash(leaves) == plain_root(leaves)


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_growing_tree_continues_from_its_subtrees(first: int, more: int) -> None:
    leaves = leaves_of(first + more)
    begun = GrowingTree()
    for leaf in leaves[:first]:
        begun.append(leaf)
    continued = GrowingTree(begun.size, begun.subtrees)
    for leaf in leaves[first:]:
        continued.append(leaf)
    assert continued.root() == root_hash(leaves)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 64, 65])
def test_every_entry_has_a_proof_that_holds_for_it_alone(size: int) -> None:
    leaves = leaves_of(size)
    root = root_hash(leaves)
    for index in range(size):
        proof = inclusion_proof(leaves, index)
        assert includes(leaves[index], index=index, size=size, proof=proof, root=root)
        assert not includes(leaf_hash(b"forged"), index=index, size=size, proof=proof, root=root)
        for other in set(range(size)) - {index}:
            assert not includes(leaves[index], index=other, size=size, proof=proof, root=root)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 8, 13, 32, 33])
def test_every_older_tree_has_a_proof_that_holds_for_it_alone(size: int) -> None:
    leaves = leaves_of(size)
    root = root_hash(leaves)
    for older in range(1, size + 1):
        proof = consistency_proof(leaves, older)
        assert extends(older, root_hash(leaves[:older]), size=size, root=root, proof=proof)
        changed = [leaf_hash(b"changed"), *leaves[1:older]]
        assert not extends(older, root_hash(changed), size=size, root=root, proof=proof)


@given(st.data(), st.integers(2, 60))
def test_a_damaged_proof_does_not_hold(data: st.DataObject, size: int) -> None:
    leaves = leaves_of(size)
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(leaves, index)
    at = data.draw(st.integers(0, len(proof) - 1))
    for damaged in (proof[:at] + proof[at + 1 :], [*proof, proof[at]], [*proof[:at], bytes(32), *proof[at + 1 :]]):
        assert not includes(leaves[index], index=index, size=size, proof=damaged, root=root_hash(leaves))


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_there_is_no_proof_for_what_is_not_in_the_tree(index: int, size: int) -> None:
    with pytest.raises(IndexError):
        inclusion_proof(leaves_of(size), index)
    assert not includes(leaf_hash(b"0"), index=index, size=size, proof=[], root=root_hash(leaves_of(size)))

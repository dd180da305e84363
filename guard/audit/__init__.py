"""The audit log: an append-only Merkle log of decisions, verdicts and changes of policies, with signed checkpoints.

`AuditLog` is the log in a database, `SigningKey` and `PublicKey` sign and check its checkpoints, `guard.audit.merkle`
has the hashes and proofs of RFC 6962.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.audit.log import AuditLog, Entry, InclusionProof, Verification
    from guard.audit.notes import LogCheckpoint, PublicKey, SigningKey, open_note

__all__ = [
    "AuditLog",
    "Entry",
    "InclusionProof",
    "LogCheckpoint",
    "PublicKey",
    "SigningKey",
    "Verification",
    "open_note",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "log": ("AuditLog", "Entry", "InclusionProof", "Verification"),
        "notes": ("LogCheckpoint", "PublicKey", "SigningKey", "open_note"),
    },
)

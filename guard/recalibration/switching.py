"""Put a new scorer and certificate where the policy and its programs find them; the old files are kept."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from guard.errors import InputError
from guard.files.output_file import check_writable
from guard.files.private_files import create_private_folder
from guard.files.write_whole import write_whole
from guard.policy.guarantee import guarantees
from guard.policy.policy import Policy
from guard.review.store import Store


@dataclass(frozen=True, slots=True)
class Destination:
    """The files in use.

    Attributes:
        policy: name of the policy.
        scorer: the scorer file.
        certificate: the certificate file; None where the policy guarantees nothing.
    """

    policy: str
    scorer: Path
    certificate: Path | None


def find_destination(scorer: str | Path | None, certificate: str | Path | None, policy: Policy) -> Destination:
    """Return the files to replace.

    Raises:
        InputError: the scorer is no file of the user's, the policy's guarantee names no certificate file, or one of
            them cannot be written.
    """
    if scorer is None or not Path(scorer).is_file():
        raise InputError(
            "There is no scorer file to replace", fix="Give the file that your programs load: --scorer FILE"
        )
    check_writable(Path(scorer), "scorer")
    named = certificate or policy.certificate
    if not guarantees(policy):
        return Destination(policy.name, Path(scorer), None)
    if named is None:
        raise InputError(
            "There is no certificate file to replace",
            fix="Name it in the policy ('certificate: FILE'), or give it with --certificate",
        )
    check_writable(Path(named), "certificate")
    return Destination(policy.name, Path(scorer), Path(named))


def switch(
    store: Store, to: Destination, scorer: Path, certificate: Path | None, *, kept_in: Path, scorer_sha256: str
) -> None:
    """Replace the files in use, and write it into the store's audit log. Where they are in use already, do nothing.

    Between the two the policy is refused, since its certificate is for another scorer: nothing is accepted by half of
    a change.

    Args:
        store: with the log.
        to: the files in use.
        scorer, certificate: the new ones.
        kept_in: folder that gets the old ones; those that it has stay.
        scorer_sha256: digest of the new scorer.
    """
    create_private_folder(kept_in)
    both = [(scorer, to.scorer), *([(certificate, to.certificate)] if certificate and to.certificate else [])]
    pairs = [(new, used) for new, used in both if not used.exists() or used.read_bytes() != new.read_bytes()]
    if not pairs:
        return
    for new, used in pairs:
        if used.exists():
            _keep(used.read_bytes(), kept_in / new.name)
    store.audit_log().append(
        "certificate",
        scorer_sha256,
        {"what": "recalibrated", "policy": to.policy},
        texts={},
    )
    for new, used in pairs:
        write_whole(used, new.read_bytes())


def _keep(content: bytes, path: Path) -> None:
    """Write a file that was in use, beside another that was replaced before it."""
    if path.exists() and path.read_bytes() != content:
        path = path.with_stem(f"{path.stem}-{sha256(content).hexdigest()[:8]}")
    write_whole(path, content, private=True)

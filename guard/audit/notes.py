"""Signed checkpoints of a log: C2SP signed notes (tlog-checkpoint) with Ed25519 keys.

A checkpoint has three lines, the log's origin, its size and its root, and a line for each signature. Anyone who keeps a
copy elsewhere can check later whether the log still begins with the same entries.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.errors import InputError, missing_extra
from guard.files.write_whole import write_whole

_ED25519 = b"\x01"
_DASH = "\N{EM DASH} "
_PRIVATE = "PRIVATE+KEY+"


@dataclass(frozen=True, slots=True)
class LogCheckpoint:
    """The state of a log: its size and its root.

    Attributes:
        origin: names the log.
        size: the number of entries.
        root: of the tree over them, 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return what is signed.

        >>> print(LogCheckpoint("example.org/guard", 0, bytes(32)).text(), end="")
        example.org/guard
        0
        AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
        """
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Checks signatures. ``str`` gives the C2SP verifier key, ``NAME+HASH+KEY``."""

    name: str
    key: bytes

    @property
    def key_id(self) -> bytes:
        """The four bytes of a signature that identify its key."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.key).decode()}"

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read a verifier key.

        Raises:
            InputError: it is not one, or its hash does not fit.
        """
        name, key_id, key = _key_parts(text.strip())
        found = cls(name, key)
        if found.key_id.hex() != key_id:
            raise InputError("The verifier key is damaged", why="its hash does not match its key", fix="Copy it again")
        return found

    def verifies(self, signature: bytes, text: str) -> bool:
        """Return whether a signature of this key is over this text."""
        from cryptography.exceptions import InvalidSignature

        try:
            _ed25519().Ed25519PublicKey.from_public_bytes(self.key).verify(signature, text.encode())
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """Signs checkpoints. Its ``repr`` does not show the secret."""

    name: str
    _seed: bytes

    def __repr__(self) -> str:
        return f"SigningKey({self.name!r})"

    @classmethod
    def generate(cls, name: str) -> SigningKey:
        """Generate a key.

        Args:
            name: name of the signer, such as the log's origin.

        Raises:
            InputError: the name is empty, or has a space, a plus sign or a character that cannot be printed.
            MissingExtraError: cryptography is not installed.
        """
        if not _is_name(name):
            raise InputError(f"A key cannot be called {name!r:.60}", fix="Use a name without spaces and plus signs")
        return cls(name, _ed25519().Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load(cls, path: str | Path) -> SigningKey:
        """Read a key file that `save` wrote.

        Raises:
            InputError: it cannot be read, or is no signing key.
        """
        try:
            text = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The signing key '{path}' cannot be read", why=str(error)) from error
        if not text.startswith(_PRIVATE):
            raise InputError(f"'{path}' is no signing key", fix="Make one with: guard audit key NAME --out FILE")
        name, key_id, seed = _key_parts(text.removeprefix(_PRIVATE))
        key = cls(name, seed)
        if key.public.key_id.hex() != key_id:
            raise InputError(f"The signing key '{path}' is damaged", fix="Restore it from a backup")
        return key

    def save(self, path: str | Path) -> None:
        """Write the key to a new file that only its owner can read.

        Raises:
            InputError: the file exists; a lost key cannot be made again.
        """
        if Path(path).exists():
            raise InputError(f"'{path}' exists", why="a key that is overwritten is lost", fix="Give another file")
        packed = base64.b64encode(_ED25519 + self._seed).decode()
        write_whole(Path(path), f"{_PRIVATE}{self.name}+{self.public.key_id.hex()}+{packed}\n", private=True)

    @property
    def public(self) -> PublicKey:
        """The key that checks this one's signatures."""
        private = _ed25519().Ed25519PrivateKey.from_private_bytes(self._seed)
        return PublicKey(self.name, private.public_key().public_bytes_raw())

    def sign(self, checkpoint: LogCheckpoint) -> str:
        """Return the signed note."""
        text = checkpoint.text()
        signature = _ed25519().Ed25519PrivateKey.from_private_bytes(self._seed).sign(text.encode())
        packed = base64.b64encode(self.public.key_id + signature).decode()
        return f"{text}\n{_DASH}{self.name} {packed}\n"


def open_note(note: str, key: PublicKey) -> LogCheckpoint:
    """Return the checkpoint in a signed note.

    >>> key = SigningKey.generate("example.org/guard")
    >>> open_note(key.sign(LogCheckpoint("example.org/guard", 7, bytes(32))), key.public).size
    7

    Args:
        note: as `SigningKey.sign` returns it; signatures of other keys are ignored.
        key: public key whose signature the note must carry.

    Raises:
        InputError: it is no signed checkpoint, or not signed by this key.
    """
    text, separator, signatures = note.partition("\n\n")
    text += "\n"
    if not separator or not any(key.verifies(found, text) for found in _signatures(signatures, key)):
        raise InputError("The checkpoint is not signed by this key", why=f"the key is {key.name}'s")
    return _parse_checkpoint(text)


def _signatures(lines: str, key: PublicKey) -> list[bytes]:
    found = []
    for line in lines.splitlines():
        name, _, packed = line.removeprefix(_DASH).rpartition(" ")
        raw = _decoded(packed) if line.startswith(_DASH) and name == key.name else b""
        if raw[:4] == key.key_id and len(raw) == 68:
            found.append(raw[4:])
    return found


def _parse_checkpoint(text: str) -> LogCheckpoint:
    lines = text.split("\n")
    root = _decoded(lines[2]) if len(lines) == 4 else b""
    if len(root) != 32 or not lines[1].isdecimal() or str(int(lines[1])) != lines[1]:
        raise InputError("The note is no checkpoint", why="it needs an origin, a size and a root, a line each")
    return LogCheckpoint(lines[0], int(lines[1]), root)


def _is_name(name: str) -> bool:
    """Return whether a key can have this name, which notes carry and terminals show."""
    return bool(name) and "+" not in name and name.isprintable() and not any(map(str.isspace, name))


def _key_parts(text: str) -> tuple[str, str, bytes]:
    name, _, rest = text.partition("+")
    key_id, _, packed = rest.partition("+")
    raw = _decoded(packed)
    if not _is_name(name) or len(raw) != 33 or raw[:1] != _ED25519:
        raise InputError("This is no Ed25519 key in C2SP form", fix="It looks like NAME+HASH+KEY")
    return name, key_id, raw[1:]


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise missing_extra("cryptography", "audit") from None
    return ed25519

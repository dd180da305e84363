"""Signed checkpoints: the form of C2SP's signed notes, keys in files, and signatures that must not pass."""

from __future__ import annotations

import base64
import hashlib
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from guard.audit.notes import LogCheckpoint, PublicKey, SigningKey, open_note
from guard.errors import InputError

CHECKPOINT = LogCheckpoint("example.org/guard", 20852163, hashlib.sha256(b"tree").digest())


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate("example.org/guard")


def test_the_example_of_the_specification_opens() -> None:
    """The note and the key of golang.org/x/mod/sumdb/note's documentation, which C2SP signed notes come from."""
    public = PublicKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    signature = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    raw = base64.b64decode(signature)
    assert raw[:4] == public.key_id
    assert public.verifies(raw[4:], text)
    assert not public.verifies(raw[4:], text + "x")


def test_a_signed_checkpoint_opens_with_its_key(key: SigningKey) -> None:
    note = key.sign(CHECKPOINT)
    assert open_note(note, PublicKey.parse(str(key.public))) == CHECKPOINT
    assert note.startswith("example.org/guard\n20852163\n")


def test_the_signature_is_over_the_text_as_the_specification_says(key: SigningKey) -> None:
    text, _, line = key.sign(CHECKPOINT).partition("\n\n")
    dash, name, packed = line.split()
    raw = base64.b64decode(packed)
    assert (dash, name) == ("\N{EM DASH}", key.name)
    expected = hashlib.sha256(key.name.encode() + b"\n\x01" + key.public.key).digest()[:4]
    assert raw[:4] == expected
    Ed25519PublicKey.from_public_bytes(key.public.key).verify(raw[4:], (text + "\n").encode())


def test_signatures_of_others_are_passed_over(key: SigningKey) -> None:
    other = SigningKey.generate("witness.example")
    note = key.sign(CHECKPOINT) + other.sign(CHECKPOINT).partition("\n\n")[2]
    assert open_note(note, key.public) == open_note(note, other.public) == CHECKPOINT


@pytest.mark.parametrize(
    "damage",
    [
        lambda note: note.replace("20852163", "20852164"),
        lambda note: note.replace("example.org", "example.com"),
        lambda note: note.replace("\n\n", "\n"),
        lambda note: note.partition("\n\n")[0],
        lambda note: "",
        lambda note: note[:-8] + "AAAA\n",
    ],
)
def test_a_note_that_was_changed_does_not_open(key: SigningKey, damage: object) -> None:
    assert callable(damage)
    with pytest.raises(InputError, match="not signed by this key"):
        open_note(damage(key.sign(CHECKPOINT)), key.public)


def test_another_key_of_the_same_name_does_not_open_a_note(key: SigningKey) -> None:
    with pytest.raises(InputError, match="not signed by this key"):
        open_note(key.sign(CHECKPOINT), SigningKey.generate(key.name).public)


def test_what_is_signed_must_be_a_checkpoint(key: SigningKey) -> None:
    bad = LogCheckpoint("origin\nsecond line", 1, bytes(32))
    with pytest.raises(InputError, match="no checkpoint"):
        open_note(key.sign(bad), key.public)


def test_a_key_file_is_private_and_comes_back_whole(key: SigningKey, tmp_path: Path) -> None:
    path = tmp_path / "key"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path) == key
    assert "PRIVATE" not in repr(key)
    assert key._seed.hex() not in repr(key)
    with pytest.raises(InputError, match="exists"):
        key.save(path)


@pytest.mark.parametrize("content", ["", "nonsense", "PRIVATE+KEY+a+00000000+AAAA", "\x00\xff"])
def test_a_file_that_is_no_key_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(InputError):
        SigningKey.load(path)


def test_a_damaged_key_is_refused(key: SigningKey, tmp_path: Path) -> None:
    path = tmp_path / "key"
    key.save(path)
    key_id = key.public.key_id.hex()
    path.write_text(path.read_text().replace(key_id, "00000000"))
    with pytest.raises(InputError, match="damaged"):
        SigningKey.load(path)
    with pytest.raises(InputError, match="damaged"):
        PublicKey.parse(str(key.public).replace(key_id, "00000000"))


@pytest.mark.parametrize("name", ["", "two words", "a+b", "new\nline", "a\x1b[31m", "a\u202eb"])
def test_a_name_that_breaks_the_form_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot be called"):
        SigningKey.generate(name)

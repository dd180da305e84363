"""Each token knows the characters that it writes: within characters, around thoughts, before stop strings."""

from __future__ import annotations

import pytest
from scripted import AnsweringEngine

from guard.engines.detokenizer import BytesDetokenizer
from guard.engines.offsets import TokenText, token_offsets
from guard.records import Generation, Limits, Prompt


def answer(text: str, *, stop: tuple[str, ...] = (), max_tokens: int = 200) -> Generation:
    engine = AnsweringEngine(lambda prompt, number: (text, 0.1))
    return engine.generate(Prompt.raw("?"), limits=Limits(max_tokens=max_tokens, stop=stop))


def written(generation: Generation) -> list[str]:
    assert generation.offsets is not None
    return [generation.text[start:end] for start, end in generation.offsets.tolist()]


def test_every_byte_of_a_character_writes_the_whole_character() -> None:
    assert written(answer("5 €!")) == ["5", " ", "€", "€", "€", "!", ""]


def test_a_token_that_ends_within_a_character_writes_that_too() -> None:
    """As in byte-level vocabularies, whose token for a space and the first two bytes of a dash is common."""
    pieces = {0: b"1913", 1: b" \xe2\x80", 2: b"\x93", 3: b" 1915"}
    detokenizer = BytesDetokenizer(pieces.__getitem__)
    tokens = [TokenText(detokenizer.push(token), detokenizer.within) for token in pieces]
    offsets = token_offsets(tokens, [True] * 4, "1913 – 1915")
    assert offsets is not None
    assert ["1913 – 1915"[start:end] for start, end in offsets] == ["1913", " –", "–", " 1915"]


def test_what_a_stop_string_cuts_off_is_written_by_no_token() -> None:
    assert written(answer("Oslo.\nMore", stop=("\nMo",))) == ["O", "s", "l", "o", ".", "", "", ""]


def test_a_thought_is_written_by_no_token_of_the_answer() -> None:
    found = answer("<think>Bergen?</think>\n\nOslo")
    assert found.text == "Oslo"
    assert [each for each in written(found) if each] == ["O", "s", "l", "o"]


def test_half_a_character_at_the_token_limit_is_written_by_nothing() -> None:
    found = answer("a€", max_tokens=2)
    assert found.text == "a"
    assert written(found) == ["a", ""]


@pytest.mark.parametrize("text", ["", "Ünïcödé 😀 text\nof lines", "a  b"])
def test_together_the_tokens_write_the_answer(text: str) -> None:
    found = answer(text)
    assert found.offsets is not None
    covered = {at for start, end in found.offsets.tolist() for at in range(start, end)}
    assert covered == set(range(len(found.text)))


def test_an_answer_that_its_tokens_did_not_write_has_no_offsets() -> None:
    assert token_offsets([TokenText("a")], [True], "b") is None

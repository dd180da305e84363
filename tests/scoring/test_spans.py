"""An answer's parts, what each claims, and the probability that it is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripted import AnsweringEngine, confidence_scorer, span_model, with_spans

from guard.errors import ScorerError
from guard.records import Generation, Limits, Prompt
from guard.scores import Score, Span
from guard.scoring.claims import find_claims
from guard.scoring.scorer import Scorer, parse_scorer
from guard.scoring.scorer_file import Artefact
from guard.scoring.span_scores import answer_spans, score_spans, span_columns, text_read
from guard.scoring.spans import find_spans, without_spans

TEXT = "Norway:\n- Capital: Oslo\n- Founded: 1040\nIt has 5.5 million people. Its king is Harald V."


def texts(text: str) -> list[str]:
    return [text[start:end] for start, end in find_spans(text)]


def claims(text: str, question: str = "") -> list[list[str]]:
    return [[text[a:b] for a, b in claim] for claim in find_claims(text, find_spans(text), question)]


def generated(text: str, *unsure: str) -> Generation:
    engine = AnsweringEngine(lambda prompt, number: (text, 0.1))
    engine.unsure = unsure
    return engine.generate(Prompt.raw("?"), limits=Limits(max_tokens=300))


# -- where spans begin and end -----------------------------------------------------------------


def test_lines_list_items_and_sentences_are_spans() -> None:
    expected = ["Norway:", "Capital: Oslo", "Founded: 1040", "It has 5.5 million people.", "Its king is Harald V."]
    assert texts(TEXT) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. Dr. Smith came. He left.", ["Dr. Smith came.", "He left."]),
        ("  * **Oslo** is it", ["**Oslo** is it"]),
        ("a) one\n(2) two\n### Three", ["one", "two", "Three"]),
        ("> quoted. Again.", ["quoted.", "Again."]),
        ("| a. b | c. D |\n|---|---|", ["| a. b | c. D |"]),
        ("```python\nx = 1. # no. Sentence\n```\nEnd.", ["x = 1. # no. Sentence", "End."]),
        ("巴黎是法国的首都。它有两百万居民。", ["巴黎是法国的首都。", "它有两百万居民。"]),
        ("3.14 is pi", ["3.14 is pi"]),
        ("---\n\n...\n", []),
        ("", []),
        ("line one\r\nline two", ["line one", "line two"]),
    ],
)
def test_marks_are_no_part_of_a_span_and_code_and_tables_are_not_split(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


def test_a_span_is_cut_with_its_line_or_with_the_space_behind_it() -> None:
    spans = find_spans(TEXT)
    assert without_spans(TEXT, [spans[1], spans[3]]) == "Norway:\n- Founded: 1040\nIts king is Harald V."
    assert without_spans(TEXT, []) == TEXT
    assert without_spans(TEXT, [spans[4]]).endswith("It has 5.5 million people.")


# -- what a span claims ------------------------------------------------------------------------


def test_the_new_numbers_of_a_span_are_its_claim() -> None:
    assert claims("14 * 3 = 42\nSo 42 - 2 = 40", "What is 14 times 3, less 2?") == [["42"], ["40"]]


def test_without_new_numbers_the_new_words_are() -> None:
    assert claims("Capital: Oslo\nThe capital is Bergen", "capital of Norway?") == [["Oslo"], ["The", "is", "Bergen"]]


def test_where_nothing_is_new_there_is_no_claim() -> None:
    assert claims("Oslo", "Is it Oslo?") == [[]]


def test_a_number_is_the_same_with_and_without_commas_and_no_part_of_a_word() -> None:
    assert claims("That is 1,000 kg of H2O", "1000 is? That kg of") == [["H2O"]]


# -- from tokens to columns --------------------------------------------------------------------


def test_the_columns_are_logarithms_of_the_least_sure_tokens() -> None:
    values = span_columns(np.array([-2.0, -1.0]), np.array([0.5, 3.0]), np.array([-4.0, -2.0, -1.0]))
    assert values == pytest.approx(np.log([2.0, 3.0, 4.0]))
    assert span_columns(np.zeros(1), np.zeros(1), np.zeros(1)) == pytest.approx(np.log([1e-4] * 3))


def test_only_the_tokens_of_a_spans_own_claim_count() -> None:
    spans = answer_spans(generated(TEXT, "Oslo", "million"), Prompt.raw("?"))
    assert spans is not None
    unsure_claim = spans.columns[:, 0] > 0
    assert unsure_claim.tolist() == [False, True, False, False, False]
    unsure_span = spans.columns[:, 2] > 0
    assert unsure_span.tolist() == [False, True, False, True, False]


def test_bytes_of_a_claims_characters_count_each() -> None:
    """An unsure byte within the first character of a claim is the claim's."""
    spans = answer_spans(generated("Sum: 5 €\nÅlesund", "Å"), Prompt.raw("Sum?"))
    assert spans is not None
    assert (spans.columns[:, 0] > 0).tolist() == [False, True]


def test_spans_have_their_text_place_claim_and_probability() -> None:
    spans = score_spans(span_model(), generated(TEXT, "Oslo"), Prompt.raw("Norway"))
    assert spans is not None
    assert [TEXT[span.start : span.end] == span.text for span in spans] == [True] * 5
    assert spans[1].claim == ("Capital", "Oslo")
    assert [span.p_wrong > 0.5 for span in spans] == [False, True, False, False, False]


def test_of_an_answer_that_its_tokens_did_not_write_nothing_is_scored() -> None:
    rewritten = replace(generated(TEXT), offsets=None)
    assert score_spans(span_model(), rewritten, Prompt.raw("?")) is None


def test_the_system_message_is_not_what_the_question_says() -> None:
    assert text_read(Prompt.chat("Where is 7?", system="Use 42.")) == "Where is 7?"


def test_numbers_that_are_too_large_give_no_probability() -> None:
    linear = span_model().linear.model_copy(update={"coefficients": [1e308, 1e308, 1e308]})
    with pytest.raises(ScorerError, match="not finite"):
        score_spans(span_model(linear=linear), generated(TEXT, "Oslo"), Prompt.raw("?"))


def test_the_chance_that_anything_is_wrong_is_a_noisy_or() -> None:
    spans = (Span(0, 1, "a", 0.5), Span(2, 3, "b", 0.2))
    assert Score(0.1, True, 0.0, spans=spans).p_any_wrong == pytest.approx(1 - 0.5 * 0.8)
    assert Score(0.1, True, 0.0).p_any_wrong is None


# -- in the scorer's file ----------------------------------------------------------------------


def test_a_scorer_file_keeps_the_model_of_spans_under_its_checksum(tmp_path) -> None:
    scorer = with_spans(confidence_scorer())
    scorer.save(tmp_path / "scorer.json")
    content = (tmp_path / "scorer.json").read_bytes()
    assert parse_scorer(content).artefact.spans == scorer.artefact.spans
    assert scorer.sha256 != confidence_scorer().sha256
    with pytest.raises(ScorerError):
        parse_scorer(content.replace(b'"wrong":20', b'"wrong":21'))


def test_a_file_without_such_a_model_says_nothing_of_it() -> None:
    assert "spans" not in confidence_scorer().artefact.model_dump()


@pytest.mark.parametrize("change", [{"rules": 2}, {"answers": 0}, {"more": 1}])
def test_a_model_of_other_rules_or_form_is_refused(change: dict[str, object], tmp_path) -> None:
    content = with_spans(confidence_scorer()).artefact.model_dump(by_alias=True, mode="json")
    content["spans"] |= change
    with pytest.raises(ValueError, match="spans"):
        Scorer(Artefact.model_validate(content))

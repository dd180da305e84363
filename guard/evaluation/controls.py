"""Controls: methods that do not read the model's layers, and label-free methods of other libraries.

A score that beats log-probabilities may still reflect only the texts: the kind of question, the length of the answer,
their similarity. A useful score must beat these methods.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import logit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from guard.data.answers import Answers
from guard.errors import InputError
from guard.evaluation.protocol import AnswerTable, FittedMethod, MethodKind
from guard.records import Doubles
from guard.scoring.labels import has_both_kinds, weighted

#: Categories of questions by patterns; the first match counts.
CATEGORIES: dict[str, str] = {
    "choice": r"(?m)^\s*\(?[A-D][).:]\s",
    "how many": r"\bhow (many|much|long|old|far)\b",
    "sum": r"\d\s*[-+*/x]\s*\d",
    "when": r"\b(when|what year|which year|what date)\b",
    "who": r"\b(who|whom|whose)\b",
    "where": r"\b(where|which country|what country|what city|capital)\b",
    "why": r"\b(why|how)\b",
    "yes or no": r"(?i)^\s*(is|are|was|were|do|does|did|can|could|has|have|will)\b",
    "what": r"\b(what|which)\b",
}


def question_categories(answers: Answers) -> Doubles:
    """Return the category of each question as one column each, and the logarithm of its number of words."""
    columns = np.zeros((len(answers), len(CATEGORIES) + 1))
    for row, question in enumerate(answers.question):
        found = (at for at, pattern in enumerate(CATEGORIES.values()) if re.search(pattern, question, re.IGNORECASE))
        if (category := next(found, None)) is not None:
            columns[row, category] = 1.0
        columns[row, -1] = np.log1p(len(question.split()))
    return columns


# -- text only ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextMethod:
    """Logistic regression on the texts alone: TF-IDF of the question and of the answer, and their similarity."""

    name: str = "text only"
    kind: MethodKind = "control"
    passes: float = 0.0

    def fit(self, table: AnswerTable, *, seed: int) -> FittedMethod:
        """Fit vocabulary and regression; the seed is not used.

        Raises:
            InputError: all training answers are right, or all are wrong, or the texts have no words.
        """
        del seed
        answers = _recorded(table)
        if not has_both_kinds(answers.wrong):
            raise InputError("All training answers are right, or all are wrong")
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=50_000)
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=50_000)
        try:
            words.fit(answers.question)
            letters.fit([*answers.question, *answers.answer])
        except ValueError as error:
            raise InputError("The texts have no words to learn from", why=str(error)) from error
        fitted = _FittedTextMethod(words, letters, LogisticRegression(C=1.0, max_iter=1000))
        labels = weighted(answers.wrong)
        fitted.model.fit(fitted.columns(answers)[labels.rows], labels.wrong, sample_weight=labels.weights)
        return fitted


@dataclass(frozen=True, slots=True)
class _FittedTextMethod:
    words: Any
    letters: Any
    model: LogisticRegression

    def columns(self, answers: Answers) -> Any:
        """Return a sparse matrix: words of the question, letters of the answer, and the similarity of the two."""
        asked, answered = (self.letters.transform(texts) for texts in (answers.question, answers.answer))
        similarity = np.asarray(asked.multiply(answered).sum(axis=1)).reshape(-1, 1)
        return sparse.hstack([self.words.transform(answers.question), answered, sparse.csr_matrix(similarity)]).tocsr()

    def p_wrong(self, table: AnswerTable) -> Doubles:
        return np.asarray(self.model.predict_proba(self.columns(_recorded(table)))[:, 1])


# -- the model about itself --------------------------------------------------------------------


def self_judgement(answers: Answers) -> Doubles:
    """Return the log-odds of P(true), the model's own judgement of its answer, as one column."""
    asked = answers.p_true
    if asked is None or np.isnan(asked).any():
        raise InputError("There are answers without P(true)", fix="Record with --p-true, and evaluate those answers")
    return np.asarray(logit(np.clip(asked, 1e-6, 1 - 1e-6)))[:, None]


def attention_uncertainty(answers: Answers) -> Doubles:
    """Return RAUQ, from the attention over each answer (see `guard.data.rauq`), as one column."""
    read = answers.rauq
    if read is None or np.isnan(read).any():
        raise InputError(
            "There are answers without RAUQ", fix="Record with --rauq on transformers, and evaluate those answers"
        )
    return np.asarray(read)[:, None]


# -- peers as they stand -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UnfittedProbability:
    """One minus a probability computed from the answer's tokens, without a fit.

    Attributes:
        name: name of the method.
        read: returns the logarithm of that probability from the tokens' log-probabilities.
    """

    name: str
    read: Callable[[Doubles], float]
    kind: MethodKind = "baseline"
    passes: float = 1.0

    def fit(self, table: AnswerTable, *, seed: int) -> FittedMethod:
        """Return the method itself, which needs no fit."""
        del seed
        _recorded(table)
        return self

    def p_wrong(self, table: AnswerTable) -> Doubles:
        """Return one minus the probability of each answer."""
        return np.array([-np.expm1(self.read(each)) for each in _logprobs(table)])


#: The peers' maximum sequence probability: the product of the tokens' probabilities.
SEQUENCE_PROBABILITY = UnfittedProbability("sequence probability, unfitted", np.sum)
#: The peers' minimum token probability.
LEAST_TOKEN_PROBABILITY = UnfittedProbability("least token probability, unfitted", np.min)


def _logprobs(table: AnswerTable) -> list[Doubles]:
    columns, rows = _recorded(table).columns, _recorded(table).rows
    return [columns.logprobs[columns.offsets[at] : columns.offsets[at + 1]].astype(np.float64) for at in rows]


def _recorded(table: AnswerTable) -> Answers:
    if not isinstance(table, Answers):
        raise InputError(f"These methods read recorded answers, got {type(table).__name__}")
    return table

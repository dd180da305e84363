"""Agreement: the same figures as scikit-learn's and krippendorff's; of the queue only where there are enough cases."""

from __future__ import annotations

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_cases import make_escalation
from moved_clock import MovedClock
from sklearn.metrics import cohen_kappa_score

from guard.review.agreement import cohen_kappa, krippendorff_alpha
from guard.review.stats import FEWEST_SHARED
from guard.review.store import Store
from guard.review_terms import ReviewTerms

LABELS = st.sampled_from([0, 1, 2])


@settings(deadline=None)
@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=40))
def test_kappa_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    kappa = cohen_kappa(pairs)
    if len({label for pair in pairs for label in pair}) == 1:
        assert kappa is None
    else:
        assert kappa == pytest.approx(cohen_kappa_score(*zip(*pairs, strict=True)))


@settings(deadline=None)
@given(st.lists(st.lists(st.one_of(st.none(), LABELS), min_size=4, max_size=4), min_size=1, max_size=30))
def test_alpha_is_krippendorffs(units: list[list[int | None]]) -> None:
    said = [[label for label in unit if label is not None] for unit in units]
    alpha = krippendorff_alpha(said)
    paired = {label for labels in said if len(labels) > 1 for label in labels}
    if len(paired) < 2:
        assert alpha is None
    else:
        ratings = np.array([[np.nan if label is None else label for label in unit] for unit in units]).T
        assert alpha == pytest.approx(krippendorff.alpha(ratings, level_of_measurement="nominal"))


def test_the_queue_in_figures(store: Store, clock: MovedClock) -> None:
    for number in range(4):
        store.add(make_escalation(number, terms=ReviewTerms(within_s=90_000)))
    store.approve("decision-0", reviewer="ann")
    store.reject("decision-1", reviewer="ann")
    store.undo("decision-1", reviewer="ann")
    store.skip("decision-2", reviewer="bob")
    clock.move(90_000)
    figures = store.stats()
    assert figures.by_status == {"approved": 1, "pending": 3}
    assert (figures.late, figures.claimed, figures.disputed) == (3, 0, 0)
    assert figures.oldest == "2026-01-01T00:00:01.000000+00:00"
    assert figures.by_reviewer == {"ann": {"approved": 1}, "bob": {"skipped": 1}}
    assert (figures.shared, figures.agreements, figures.alpha) == (0, (), None)


def test_agreement_is_stated_of_enough_cases(store: Store, clock: MovedClock) -> None:
    for number in range(FEWEST_SHARED):
        store.add(make_escalation(number, terms=ReviewTerms(reviews=2)))
        store.approve(f"decision-{number}", reviewer="ann")
        decide = store.reject if number % 4 == 0 else store.approve
        decide(f"decision-{number}", reviewer="bob")
        if number == FEWEST_SHARED - 2:
            before = store.stats()
    store.undo(f"decision-{FEWEST_SHARED - 1}", reviewer="bob")
    store.approve(f"decision-{FEWEST_SHARED - 1}", reviewer="bob")
    (pair,) = before.agreements
    assert (pair.cases, pair.kappa, before.alpha) == (FEWEST_SHARED - 1, None, None)
    figures = store.stats()
    (pair,) = figures.agreements
    assert (pair.reviewers, pair.cases, pair.kappa) == (("ann", "bob"), FEWEST_SHARED, 0.0)
    assert figures.shared == FEWEST_SHARED
    assert figures.disputed == 5
    expected = krippendorff.alpha([[0] * 20, [int(n % 4 == 0) for n in range(20)]], level_of_measurement="nominal")
    assert figures.alpha == pytest.approx(expected)

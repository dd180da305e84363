"""Chance-corrected agreement of reviewers on nominal labels.

Written here, because the review store needs neither scikit-learn nor krippendorff; a test compares the values.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import permutations


def cohen_kappa(pairs: Iterable[tuple[Hashable, Hashable]]) -> float | None:
    """Return Cohen's kappa of two people.

    Args:
        pairs: the two labels of each case that both have judged.

    Returns:
        1 for full agreement, 0 for chance; None without cases, or if all labels are the same.

    Examples:
        >>> cohen_kappa([("right", "right"), ("wrong", "wrong"), ("right", "wrong"), ("right", "right")])
        0.5
    """
    rows = list(pairs)
    first, second = Counter(one for one, _ in rows), Counter(other for _, other in rows)
    total = len(rows)
    by_chance = sum(first[label] * second[label] for label in first)
    if total * total == by_chance:  # also of no cases
        return None
    observed = sum(one == other for one, other in rows)
    return (observed * total - by_chance) / (total * total - by_chance)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Return Krippendorff's alpha for nominal labels of any number of people.

    Args:
        units: the labels of each case; cases with fewer than two are left out.

    Returns:
        1 for full agreement, 0 for chance; None without labels, or if all labels are the same.

    Examples:
        >>> krippendorff_alpha([("right", "right"), ("wrong", "wrong"), ("right", "wrong"), ("right",)])
        0.4444444444444444
    """
    coincidences: defaultdict[tuple[Hashable, Hashable], float] = defaultdict(float)
    for labels in units:
        for pair in permutations(labels, 2):
            coincidences[pair] += 1 / (len(labels) - 1)
    totals: defaultdict[Hashable, float] = defaultdict(float)
    for (label, _), count in coincidences.items():
        totals[label] += count
    everything = sum(totals.values())
    expected = everything**2 - sum(count**2 for count in totals.values())
    if not expected:
        return None
    differing = sum(count for (one, other), count in coincidences.items() if one != other)
    return 1 - (everything - 1) * differing / expected

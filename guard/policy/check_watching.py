"""Check that what a policy says of a lost certificate can happen: there is a guarantee, and something watches it."""

from __future__ import annotations

from collections.abc import Iterator

from guard.policy.document import Document, Route
from guard.policy.yaml_source import Location, Problem, YamlSource

_KEY = "on_certificate_lost"


def check_watching(source: YamlSource, document: Document) -> Iterator[Problem]:
    """Yield a problem for each ``on_certificate_lost`` that could never act."""
    sections: list[tuple[Location, Document | Route]] = [((), document)]
    sections += [(("routes", name), route) for name, route in document.routes.items()]
    plans = [(section.rules or document.rules, section.audit or document.audit) for _, section in sections]
    for (prefix, section), (rules, audit) in zip(sections, plans, strict=True):
        if section.on_certificate_lost is None:
            continue
        reached = plans if prefix == () else [(rules, audit)]
        guaranteeing = [each for each in reached if any(rule.guarantee for rule in each[0])]
        if not guaranteeing:
            why = "no rule here has a max_error_rate, so there is no certificate to lose"
            yield source.problem((*prefix, _KEY), why, at_key=True)
        elif not any(audit for _, audit in guaranteeing):
            why = "nothing watches the certificate. Write audit: {rate: 0.02} beside it"
            yield source.problem((*prefix, _KEY), why, at_key=True)

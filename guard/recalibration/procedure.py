"""Makes a scorer and certificates from old and new labels: take, divide, fit, certify, compare, switch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from guard.calibration.procedure import CalibrationResult, calibrate
from guard.calibration.span_procedure import with_span_model
from guard.certification.fixed_sequence import MIN_ROWS
from guard.certification.procedure import CertificationResult, certify
from guard.checked import checked_seed
from guard.data.graders import Grader
from guard.data.progress import ProgressCallback, ignore_progress
from guard.data.question_sets import list_rows, read_sets
from guard.data.questions import question_identity
from guard.data.sets import OnBad
from guard.engines import EMBEDDED
from guard.errors import InputError
from guard.files.private_files import create_private_folder
from guard.files.write_whole import write_whole
from guard.policy.certificate import apply_certificates, load_certificates
from guard.policy.guarantee import asks_again, guarantees
from guard.policy.policy import Policy, load_policy
from guard.recalibration.dividing import HELD_OUT, DividedAnswers, JudgedAnswer, divide
from guard.recalibration.expected import ExpectedChange, expected_change
from guard.recalibration.rescoring import score_answers
from guard.recalibration.switching import Destination, find_destination, switch
from guard.recalibration.taking import Traffic, take_labels
from guard.review.store import Store
from guard.runtime.sources import check_gives
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer


@dataclass(frozen=True, slots=True)
class RecalibrationResult:
    """A new scorer with its certificates, and what they would change.

    Attributes:
        scorer, certificate: the new files, in the folder of the recalibration; the certificate is None where the policy
            guarantees nothing, or a route of it is not certifiable.
        calibration: the new scorer with its metrics.
        certifications: of each route with a guarantee.
        changes: of each route with new labels; empty where the policy has no thresholds for the new scorer.
        fitted_on, held_out: number of new labels for the scorer, those left out or over ``limit`` not counted, and for
            certificates and changes.
        known, undrawn, contradicted, undecided: of new labels and cases that are not used; see `DividedAnswers` and
            `Traffic`.
        other_routes: number of new labels on routes that the policy does not have; they are not used.
        applied: whether the present scorer and certificate were replaced.
    """

    scorer: Path
    certificate: Path | None
    calibration: CalibrationResult
    certifications: Mapping[str | None, CertificationResult]
    changes: tuple[ExpectedChange, ...]
    fitted_on: int
    held_out: int
    known: int
    undrawn: int
    contradicted: int
    undecided: int
    other_routes: int
    applied: bool

    @property
    def is_certified(self) -> bool:
        """Whether every guarantee of the policy has a certificate."""
        return all(each.certificate is not None for each in self.certifications.values())


def recalibrate(
    store: Store,
    *,
    into: str | Path,
    policy: str | Path | Policy,
    data: Sequence[str | Path] = (),
    scorer: str | Path | None = None,
    certificate: str | Path | None = None,
    model: str | Path = EMBEDDED,
    since: str | None = None,
    labels_of: str | None = None,
    share: float = HELD_OUT,
    apply: bool = False,
    engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    grader: str | Grader | None = None,
    on_bad: OnBad = "stop",
    limit: int | None = None,
    seed: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> RecalibrationResult:
    """Make a new scorer and new certificates from old labels and the verdicts of a store.

    ``guard recalibrate`` calls this function. The first call copies the verdicts into the folder; a later one with the
    same folder works on these copies, asks nothing twice, and makes the same files, byte for byte.

    Args:
        store: the review store, with verdicts on audited and escalated answers.
        into: folder for everything that is made; created if there is none.
        policy: the policy in use: a file, a built-in name, or a `Policy`.
        data: old labels, as for `guard.calibrate`; they fit the scorer and nothing else.
        scorer: the scorer in use; optional for the embedded model.
        certificate: the certificate file in use; by default the one that the policy names.
        model: ``smollm2`` (the embedded model), a GGUF file, or a model folder.
        since: only verdicts on calls since then: a duration such as ``30d``, or an ISO 8601 time with its offset.
        labels_of: only verdicts on answers of the model of this name, if the store has several.
        share: of the questions whose answers may be held out, above 0 and below 1.
        apply: replace the scorer and the certificate in use, whose old files are kept in the folder.
        engine, engine_options, grader, on_bad, limit, seed, progress: as for `guard.calibrate` and `guard.certify`.

    Raises:
        InputError: an argument, the policy, the verdicts or the folder cannot be used; or ``apply`` has nothing to
            replace, or a guarantee has no certificate.
        ScorerError: the new scorer lacks a score or spans that the policy decides on.
        CalibrationError: there are too few labels, or guard's own score carries no signal.
        GuardError: as for `guard.calibrate` and `guard.certify`.

    Examples:
        >>> import guard
        >>> with guard.Store.open("reviews.db") as store:  # doctest: +SKIP
        ...     made = guard.recalibrate(store, into="new", policy="support-desk.yaml", data=["old.jsonl"])
        >>> made.is_certified, made.changes[0].proposed.coverage  # doctest: +SKIP
        (True, (0.44, 0.39, 0.49))
    """
    folder, chosen = Path(into), load_policy(policy)
    checked_seed(seed)
    if not 0.0 < share < 1.0:
        raise InputError(f"share must be above 0 and below 1, got {share}")
    _check_policy(chosen)
    _check_apart(folder, scorer, certificate or chosen.certificate)
    destination = find_destination(scorer, certificate, chosen) if apply else None
    present = load_scorer(shipped_scorer() if scorer is None else scorer)
    known = _known_questions(data, on_bad=on_bad, limit=limit, seed=seed)
    _make_folder(folder)
    taking: dict[str, Any] = {"policy": chosen.name, "since": since, "labels_of": labels_of}
    answers, traffic = take_labels(store, folder, scorer_sha256=present.sha256, **taking)
    if traffic.scorer_sha256 != present.sha256:
        _check_made_here(folder / _SCORER, present)
    of_routes = [each for each in answers if each.route in chosen.plans]
    divided = divide(of_routes, known=known, share=share, seed=seed)
    _check_sample(divided, answers, chosen, traffic)
    loading: dict[str, Any] = {"model": model, "engine": engine, "engine_options": engine_options}
    reading: dict[str, Any] = {"grader": grader, "on_bad": on_bad, "seed": seed, "progress": progress}
    reviewed = _write_reviewed(folder, divided.fit)
    sets = [*data, reviewed] if divided.fit else _old_labels(data, divided)
    fitted = _fit(folder, sets, present, {**loading, **reading, "limit": limit})
    _check_fitted(fitted, chosen, traffic, str(model))
    mark = f"{fitted.fitted.scorer.sha256[:8]}-{chosen.sha256[:8]}"
    certifications = _certify(folder, divided, chosen, mark, {**loading, **reading})
    certified = all(each.certificate is not None for each in certifications.values())
    made = folder / _CERTIFICATE if certified and certifications else None
    changes: tuple[ExpectedChange, ...] = ()
    if certified:
        sample = [each for members in divided.held_out.values() for each in members]
        comparing: dict[str, Any] = {
            "scorer": folder / _SCORER,
            "journal": folder / f"scores-{mark}.journal",
            "progress": progress,
        }
        scored = score_answers(sample, **comparing, **loading)
        proposed = chosen if made is None else apply_certificates(chosen, load_certificates(made))
        changes = _changes(divided, scored, proposed, traffic, answers)
    if destination is not None:
        _switch(store, folder, destination, fitted.fitted.scorer, made, certified=certified)
    return RecalibrationResult(
        folder / _SCORER,
        made,
        fitted,
        certifications,
        changes,
        fitted_on=sum(each.rows for each in fitted.fitted.scorer.artefact.data if each.name == reviewed.stem),
        held_out=sum(map(len, divided.held_out.values())),
        known=divided.known,
        undrawn=divided.undrawn,
        contradicted=traffic.contradicted,
        undecided=traffic.undecided,
        other_routes=len(answers) - len(of_routes),
        applied=apply,
    )


_SCORER, _CERTIFICATE = "scorer.json", "certificate.json"


# -- what can be used --------------------------------------------------------------------------


def _check_policy(policy: Policy) -> None:
    """Refuse policies that verdicts say too little about, before anything is asked."""
    if policy.needs_early:
        raise InputError(
            f"The policy '{policy.name}' stops answers early, and verdicts do not say where it would stop them",
            why="its early stages are of the present scorer; a new one has none, and they are fitted on answers as "
            "the model writes them",
            fix="Run guard calibrate, guard calibrate --early with its scorer, and guard certify",
        )
    for route in guarantees(policy):
        if asks_again(policy.plan(route)):
            raise InputError(
                f"Verdicts certify nothing for the policy '{policy.name}'"
                + ("" if route is None else f", route {route}"),
                why="it may ask again, and nobody has judged the answers that its retries and fallbacks would give",
                fix="Fit with guard calibrate and certify with questions and accepted answers: guard certify",
            )


def _check_apart(folder: Path, scorer: str | Path | None, certificate: str | Path | None) -> None:
    """Refuse a folder in which the new files would take the place of those in use before anyone has seen them."""
    for used, made in ((scorer, _SCORER), (certificate, _CERTIFICATE)):
        if used is not None and Path(used).resolve() == (folder / made).resolve():
            raise InputError(
                f"The new {made} would take the place of '{used}', which is in use",
                fix="Give a folder of its own with --into",
            )


def _check_made_here(made: Path, present: Scorer) -> None:
    """Refuse a folder whose labels were taken beside another scorer, unless the present one was made in it."""
    if not made.exists() or load_scorer(made).sha256 != present.sha256:
        raise InputError(
            f"The scorer in use is not the one for which '{made.parent}' was begun",
            why="what an earlier run has shown was about another scorer",
            fix="Give another folder with --into",
        )


def _old_labels(data: Sequence[str | Path], divided: DividedAnswers) -> Sequence[str | Path]:
    """Return the old labels, which fit the scorer alone where no verdict is left for it."""
    if not data:
        held_out = sum(map(len, divided.held_out.values()))
        raise InputError(
            "No verdict is left to fit the scorer",
            why=f"{held_out} are held out, and {divided.undrawn} are on held-out questions",
            fix="Give old labels with --data, or a smaller --share",
        )
    return data


def _known_questions(data: Sequence[str | Path], *, on_bad: OnBad, limit: int | None, seed: int) -> frozenset[str]:
    sources = read_sets(data, on_bad=on_bad, limit=limit, seed=seed) if data else ()
    return frozenset(question_identity(row) for _, row in list_rows(sources))


def _make_folder(path: Path) -> None:
    try:
        create_private_folder(path)
    except OSError as error:
        raise InputError(
            f"Cannot make the folder '{path}'", why=error.strerror or "", fix="Give another --into"
        ) from error


def _check_sample(divided: DividedAnswers, answers: Sequence[JudgedAnswer], policy: Policy, traffic: Traffic) -> None:
    """Refuse verdicts that are no random sample of a route's answers, or too few to certify it."""
    if not any(each.route in policy.plans for each in answers):
        raise InputError(
            f"No verdict is on a route of the policy '{policy.name}'",
            why=f"they are on {_named(answers[0].route)}",
            fix="Give the policy that decided about these answers",
        )
    missing = guarantees(policy).keys() - divided.held_out.keys()
    if missing:
        raise _too_few(missing.pop(), 0)
    for route, held_out in divided.held_out.items():
        audited = any(each.is_audit for each in answers if each.route == route)
        if not audited and _accepts(traffic, route) is not False:
            raise InputError(
                f"The verdicts on {_named(route)} are no sample of the answers",
                why="all of them are on escalated answers; accepted ones were not audited",
                fix="Give the policy an audit section, such as audit: {rate: 0.05}, and decide its cases",
            )
        if route in guarantees(policy) and len(held_out) < MIN_ROWS:
            raise _too_few(route, len(held_out))


def _accepts(traffic: Traffic, route: str | None) -> bool | None:
    """Return whether answers on a route were accepted; None where the log does not say."""
    return None if traffic.logged is None else traffic.logged.get(route or "", {}).get("accept", 0) > 0


def _too_few(route: str | None, held_out: int) -> InputError:
    return InputError(
        f"{held_out} verdicts are held out for {_named(route)}, and a certificate needs at least {MIN_ROWS}",
        why="an escalated answer counts as often as an audited one, so most of the escalated ones are not drawn",
        fix="Decide more cases, raise the audit rate, or go further back with --since",
    )


def _named(route: str | None) -> str:
    return "calls without a route" if route is None else f"the route '{route}'"


# -- what is made ------------------------------------------------------------------------------


def _write_reviewed(folder: Path, answers: Sequence[JudgedAnswer]) -> Path:
    """Write the new labels that fit the scorer to a file."""
    content = _rows_to_write(answers, weighted=True)
    # Its own name: the labels of an earlier recalibration may be among the old ones.
    path = folder / f"reviewed-{sha256(content.encode()).hexdigest()[:8]}.jsonl"
    write_whole(path, content, private=True)
    return path


def _fit(folder: Path, data: Sequence[str | Path], present: Scorer, options: Mapping[str, Any]) -> CalibrationResult:
    """Fit a scorer that asks as the present one does."""
    artefact = present.artefact
    made = calibrate(
        data,
        out=folder / _SCORER,
        **options,
        system=artefact.prompting.system,
        max_tokens=artefact.prompting.max_tokens,
        template_options=artefact.prompting.template_options,
        tau=artefact.feature_schema.temperatures,
        capture_point="block" if artefact.binding.capture_point == "block" else "mlp",
    )
    return _with_spans_of(present, made)


def _check_fitted(made: CalibrationResult, policy: Policy, traffic: Traffic, model: str) -> None:
    """Refuse a scorer that has not seen the verdicts, or lacks what the policy decides on."""
    if traffic.model in made.other_models:
        raise InputError(
            f"The verdicts are on answers of {traffic.model}, not of {model}",
            why="a scorer learns from the answers of its own model",
            fix="Give that model with --model, or other verdicts with --labels-of",
        )
    check_gives(made.fitted.scorer, policy, whose=model)


def _with_spans_of(present: Scorer, made: CalibrationResult) -> CalibrationResult:
    """Keep the present scorer's model of spans, which reads no other score, if both scorers are of one model."""
    spans, scorer = present.artefact.spans, made.fitted.scorer
    if spans is None or scorer.artefact.binding != present.artefact.binding:
        return made
    both = with_span_model(scorer, spans)
    both.save(made.out)
    return replace(made, fitted=replace(made.fitted, scorer=both))


def _certify(
    folder: Path, divided: DividedAnswers, policy: Policy, mark: str, options: Mapping[str, Any]
) -> dict[str | None, CertificationResult]:
    """Certify each guarantee; journals are of one scorer and one policy, which the mark names."""
    out = folder / _CERTIFICATE
    out.unlink(missing_ok=True)  # of an earlier run: whatever is certified now is certified with this scorer
    found: dict[str | None, CertificationResult] = {}
    for number, route in enumerate(guarantees(policy)):
        path = folder / f"held-out-{number}.jsonl"
        write_whole(path, _rows_to_write(divided.held_out[route], weighted=False), private=True)
        journal = folder / f"held-out-{number}-{mark}.journal"
        found[route] = certify(
            path, out=out, scorer=folder / _SCORER, policy=policy, route=route, journal=journal, **options
        )
    return found


def _changes(
    divided: DividedAnswers,
    scored: Mapping[str, Mapping[str, Any]],
    policy: Policy,
    traffic: Traffic,
    answers: Collection[JudgedAnswer],
) -> tuple[ExpectedChange, ...]:
    return tuple(
        expected_change(route, members, scored, policy, traffic, answers)
        for route, members in divided.held_out.items()
        if members
    )


def _rows_to_write(answers: Sequence[JudgedAnswer], *, weighted: bool) -> str:
    """Return answers as labelled data; a weight counts relative to those of the other new answers."""
    mean = sum(each.row.weight for each in answers) / len(answers) if answers else 1.0
    rows = [{**each.content, "weight": each.row.weight / mean if weighted else 1.0} for each in answers]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _switch(
    store: Store, folder: Path, to: Destination, scorer: Scorer, certificate: Path | None, *, certified: bool
) -> None:
    if not certified:
        raise InputError(
            "Nothing was switched",
            why="a guarantee of the policy has no certificate for the new scorer, so the policy would be refused",
            fix="Collect more labels, or change the guarantee; without --apply the new files are made all the same",
        )
    switch(store, to, folder / _SCORER, certificate, kept_in=folder / "before", scorer_sha256=scorer.sha256)

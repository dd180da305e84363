"""Score metadata on messages: written by scored models, read by wrappers.

Every `AIMessage` of a model that guard scores has ``response_metadata["guard"]``, a plain mapping that survives JSON,
checkpoints and traces. Its keys, which only this module uses:

    p_wrong            probability of being wrong, or None without a score
    decides            name of the score that it is: guard, ilis or log-probabilities
    scores             every probability that the scorer gives, by score: {p_wrong, reads}; empty without a score
    spans              parts of the answer: a list of {start, end, text, p_wrong, claim}; None where there are none
    ood_score          share of the calibration answers that are more usual, or None
    unlike             why the answer is of another length or form than those of the calibration, or None
    calibrated         False when the scorer was forced onto another model
    error              reason why there is no score, or None
    tokens             generated tokens, including the end token
    prompt_tokens      tokens of the prompt
    signature          {layers, tokens, over, kl_mean, kl_max, kl_max_pair}; None where no score reads a map
    model              the model's name
    score_seconds      seconds for features and score, or None
    sampling           {temperature, top_p, top_k, seed}
    finish_reason      stop, stop_string, length (truncated), or early (stopped by the policy); None if unknown
    decision           only if a policy decided inside the model:
                       {action, rule, reason, decision_id, route, policy}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

import numpy as np
from langchain_core.messages import AIMessage, BaseMessage

from guard.content import ASIDE
from guard.errors import InputError, ScorerError
from guard.outcome_export import readings, span_list
from guard.policy.defects import Defect, find_defects
from guard.records import Decision, FinishReason, Outcome, Sampling, Signature
from guard.scores import SCORE_NAMES, Score, ScoreName, ScoreReading, Span
from guard.scoring.signature import AGGREGATE_WORDS

#: The key within ``response_metadata``.
KEY = "guard"

#: Keys under which other providers report how an answer ended, and their names for the token limit.
_ENDINGS, _LIMITS = ("finish_reason", "stop_reason", "done_reason"), frozenset({"length", "max_tokens", "model_length"})


@dataclass(frozen=True, slots=True)
class ScoredCall:
    """The score metadata of one message.

    Attributes:
        p_wrong: probability of being wrong, by the score of this name; None without a usable score.
        calibrated: False when the scorer was forced onto another model.
        error: reason why there is no score; None exactly if ``p_wrong`` is a probability.
        tokens: generated tokens.
        prompt_tokens: tokens of the prompt.
        model: the model's name.
        score_seconds: time for features and score, in seconds.
        sampling: sampling parameters of the answer.
        decision: decision of a policy inside the model, or None.
        ood_score: share of the calibration answers that are more usual; None where it is not known.
        finish_reason: reason why the answer ended; None if unknown.
        decides: name of the score that ``p_wrong`` is.
        scores: every probability that the scorer gives, by score.
        spans: lines, list items and sentences with a probability each; None where the scorer gives none.
        unlike: why the answer is of another length or form than those of the calibration, or None.
    """

    p_wrong: float | None
    calibrated: bool
    error: str | None
    tokens: int
    prompt_tokens: int
    model: str
    score_seconds: float | None
    sampling: Sampling
    decision: Mapping[str, Any] | None = None
    ood_score: float | None = None
    finish_reason: FinishReason | None = None
    decides: ScoreName = "guard"
    scores: Mapping[ScoreName, ScoreReading] = field(default_factory=dict)
    spans: tuple[Span, ...] | None = None
    unlike: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the call has no usable score, so that a policy's ``on_error`` decides."""
        return self.error is not None

    def deciding(self, name: ScoreName) -> Score:
        """Return the score with the probability that a policy decides on.

        Raises:
            ScorerError: there is no score of that name.
        """
        if self.p_wrong is None:
            raise ScorerError("The answer has no score", why=self.error or "")
        seconds = self.score_seconds or 0.0
        own = (self.p_wrong, self.calibrated, seconds, self.ood_score, self.scores, self.decides)
        return Score(*own, spans=self.spans, unlike=self.unlike).deciding(name)

    def why_lacking(self, name: ScoreName) -> str | None:
        """Return why there is no score of that name, or None if there is."""
        try:
            self.deciding(name)
        except ScorerError as error:
            return str(error)
        return None


def score_metadata(
    *,
    model: str,
    score: Score | None,
    error: str | None = None,
    tokens: int = 0,
    prompt_tokens: int = 0,
    signature: Signature | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    decision: Mapping[str, Any] | None = None,
    finish_reason: FinishReason | None = None,
) -> dict[str, Any]:
    """Return the value of ``response_metadata["guard"]``.

    Args:
        model: the model's name.
        score: None if scoring failed; then ``error`` says why.
        error: reason why there is no score.
        tokens: generated tokens, including the end token.
        prompt_tokens: tokens of the prompt.
        signature: only its summary is kept; the maps of one answer are larger than most conversations.
        sampling: sampling parameters of the answer.
        decision: see `decision_metadata`; only if a policy has decided.
        finish_reason: reason why the answer ended; ``length`` means that it is truncated.

    Examples:
        >>> score_metadata(model="tiny", score=Score(0.1, True, 0.0))["p_wrong"]
        0.1
    """
    content: dict[str, Any] = {
        "p_wrong": score.p_wrong if score else None,
        "decides": score.decides if score else None,
        "scores": readings(score.scores) if score else {},
        "spans": span_list(score.spans) if score else None,
        "ood_score": score.ood_score if score else None,
        "unlike": score.unlike if score else None,
        "calibrated": score.calibrated if score else False,
        "error": None if score else error or "the answer has no score",
        "tokens": tokens,
        "prompt_tokens": prompt_tokens,
        "signature": signature_summary(signature) if signature and signature.aggregates else None,
        "model": model,
        "score_seconds": score.seconds if score else None,
        "sampling": asdict(sampling),
        "finish_reason": finish_reason,
    }
    return content if decision is None else {**content, "decision": dict(decision)}


def decision_metadata(
    decision: Decision | Outcome, *, decision_id: str, route: str | None, policy: str
) -> dict[str, Any]:
    """Return the value of ``response_metadata["guard"]["decision"]``.

    Examples:
        >>> from guard import decide, load_policy
        >>> decision = decide(load_policy("strict"), p_wrong=0.01)
        >>> decision_metadata(decision, decision_id="1", route=None, policy="strict")["action"]
        'accept'
    """
    return {
        "action": decision.action.value,
        "rule": decision.rule,
        "reason": decision.reason,
        "decision_id": decision_id,
        "route": route,
        "policy": policy,
    }


def signature_summary(signature: Signature) -> dict[str, Any]:
    """Return the layer divergences in a few numbers, in nats, of the map averaged over the answer, or else the last."""
    aggregate = signature.aggregates.index("mean") if "mean" in signature.aggregates else len(signature.aggregates) - 1
    divergences = signature.maps[0, aggregate]
    layers = divergences.shape[-1]
    row, column = divmod(int(np.argmax(divergences)), layers)
    return {
        "layers": layers,
        "tokens": signature.tokens,
        "over": AGGREGATE_WORDS[signature.aggregates[aggregate]],
        # The diagonal is zero and does not count.
        "kl_mean": float(divergences.sum() / (layers * (layers - 1))),
        "kl_max": float(divergences[row, column]),
        "kl_max_pair": [row, column],
    }


def read_score(message: BaseMessage) -> ScoredCall | None:
    """Return the score metadata of a message.

    Returns:
        None if the message is not from a scored model. Invalid metadata (a score that is not a probability, a value of
        the wrong type) gives a call with ``error`` set.

    Examples:
        >>> metadata = score_metadata(model="tiny", score=Score(0.1, True, 0.0))
        >>> read_score(AIMessage("Paris", response_metadata={"guard": metadata})).p_wrong
        0.1
        >>> read_score(AIMessage("Paris")) is None
        True
    """
    content = message.response_metadata.get(KEY) if isinstance(message, AIMessage) else None
    if content is None:
        return None
    if not isinstance(content, Mapping):
        return _unreadable(f"the guard metadata is a {type(content).__name__}")
    p_wrong, error = _probability(content.get("p_wrong")), content.get("error")
    ended = content.get("finish_reason")
    if ended is not None and ended not in get_args(FinishReason):
        return _unreadable(f"the finish reason {ended!r:.50} is unknown")
    if p_wrong is None and not error:
        error = f"the score {content.get('p_wrong')!r:.50} is not a probability"
    decides = content.get("decides") or "guard"
    if decides not in SCORE_NAMES:
        return _unreadable(f"the score {decides!r:.50} is unknown")
    decision = content.get("decision")
    return ScoredCall(
        p_wrong=None if error else p_wrong,
        calibrated=content.get("calibrated") is True,
        error=str(error) if error else None,
        tokens=_count(content.get("tokens")),
        prompt_tokens=_count(content.get("prompt_tokens")),
        model=str(content.get("model", "")),
        score_seconds=_number(content.get("score_seconds")),
        sampling=_sampling(content.get("sampling")),
        decision=decision if isinstance(decision, Mapping) else None,
        ood_score=_probability(content.get("ood_score")),
        finish_reason=ended,
        decides=decides,
        scores=_readings(content.get("scores")),
        spans=_spans(content.get("spans")),
        unlike=str(content["unlike"]) if content.get("unlike") else None,
    )


def read_finish_reason(message: BaseMessage) -> FinishReason | None:
    """Return how a message ended, by guard's or another provider's metadata; None if unknown.

    Of other providers only the token limit is recognised, since their other values have different meanings.
    """
    scored = read_score(message)
    if scored is not None:
        return scored.finish_reason
    endings = (message.response_metadata.get(name) for name in _ENDINGS)
    return "length" if any(str(ending).lower() in _LIMITS for ending in endings) else None


def message_defects(message: BaseMessage) -> tuple[Defect, ...]:
    """Return the defects of a message. One that calls tools or contains other content is not empty."""
    calls = isinstance(message, AIMessage) and bool(message.tool_calls or message.invalid_tool_calls)
    blocks = [] if isinstance(message.content, str) else message.content
    shows = any(isinstance(block, dict) and block.get("type") not in ("text", *ASIDE) for block in blocks)
    return find_defects("something" if calls or shows else str(message.text), read_finish_reason(message))


def with_metadata(message: AIMessage, **changes: Any) -> AIMessage:
    """Return a copy of a message with some of its guard metadata added or changed."""
    content = {**(message.response_metadata.get(KEY) or {}), **changes}
    return message.model_copy(update={"response_metadata": {**message.response_metadata, KEY: content}})


def _unreadable(error: str) -> ScoredCall:
    return ScoredCall(None, False, error, 0, 0, "", None, Sampling())


def _readings(value: Any) -> dict[ScoreName, ScoreReading]:
    """Return the probabilities by score; what is unreadable is left out."""
    found = value if isinstance(value, Mapping) else {}
    return {name: each for name in SCORE_NAMES if (each := _reading(found.get(name))) is not None}


def _reading(value: Any) -> ScoreReading | None:
    p_wrong = _probability(value.get("p_wrong")) if isinstance(value, Mapping) else None
    reads = value.get("reads") if isinstance(value, Mapping) else None
    texts = tuple(map(str, reads)) if isinstance(reads, list | tuple) else ()
    return None if p_wrong is None else ScoreReading(p_wrong, texts)


def _spans(value: Any) -> tuple[Span, ...] | None:
    """Return the spans of a message; None where one is unreadable, since a policy must not miss any."""
    found = [_span(each) for each in value] if isinstance(value, list | tuple) else [None]
    return None if None in found else tuple(each for each in found if each is not None)


def _span(value: Any) -> Span | None:
    found = value if isinstance(value, Mapping) else {}
    p_wrong, text, claim = _probability(found.get("p_wrong")), found.get("text"), found.get("claim")
    if p_wrong is None or not isinstance(text, str) or not isinstance(claim, list | tuple):
        return None
    return Span(_count(found.get("start")), _count(found.get("end")), text, p_wrong, tuple(map(str, claim)))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _probability(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and 0.0 <= number <= 1.0 else None


def _count(value: Any) -> int:
    number = _number(value)
    return int(number) if number is not None and 0 <= number < 2**53 else 0


def _sampling(value: Any) -> Sampling:
    """Return the sampling parameters of a message; the defaults if they are unreadable."""
    known = {each.name for each in fields(Sampling)}
    try:
        return Sampling(**{name: setting for name, setting in dict(value).items() if name in known})
    except (TypeError, ValueError, InputError):
        return Sampling()

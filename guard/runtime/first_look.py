"""A first look at a model without a scorer: one answer and its label-free signals. Nothing here is a probability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from guard.engines.asked import RequestEngine
from guard.engines.protocols import Engine
from guard.engines.system_messages import SHORT_ANSWER_SYSTEM
from guard.records import FinishReason, Generation, Limits, Prompt
from guard.runtime.base_models import COMPLETION_STOP, completion_text, is_base_model

#: Token limit of an answer, as of most calibrations.
MAX_TOKENS = 32


@dataclass(frozen=True, slots=True)
class FirstLook:
    """One unscored answer. Its signals rank answers somewhat; how often such an answer is wrong needs labels.

    Attributes:
        answer: the model's answer; no policy has decided about it.
        model: the model's name.
        tokens: tokens of the answer, the end token included.
        finish_reason: how the answer ended; ``length`` means that it is cut.
        mean_logprob: mean log-probability of the answer's tokens, at most 0; lower is less sure.
        least_logprob: log-probability of the least likely token.
        mean_entropy: mean entropy of the next-token distributions, in nats; higher is less sure.
        greatest_entropy: the greatest of them.

    The signals are None where the answer has no token, as after a thought that the token limit cut.
    """

    answer: str
    model: str
    tokens: int
    finish_reason: FinishReason
    mean_logprob: float | None
    least_logprob: float | None
    mean_entropy: float | None
    greatest_entropy: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data; ``p_wrong`` is None, since nothing is calibrated."""
        return {**asdict(self), "p_wrong": None, "calibrated": False}


def take_first_look(
    engine: Engine,
    question: str,
    *,
    max_tokens: int | None = None,
    timeout_s: float | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> FirstLook:
    """Ask a model one question as a calibration would, and return the answer with its label-free signals.

    Args:
        engine: a loaded engine. A model without a chat template continues a text with solved examples.
        question: the question's text.
        max_tokens: token limit of the answer; by default 32.
        timeout_s: time limit of the answer in seconds.
        template_options: variables of the model's chat template.

    Raises:
        EngineError: the model fails.
        InputError: the chat template does not read one of the options.

    Examples:
        >>> from guard import load_engine
        >>> with load_engine("smollm2", threads=1) as engine:
        ...     look = take_first_look(engine, "What is the capital of France?", max_tokens=8)
        >>> look.tokens > 0, look.least_logprob <= look.mean_logprob <= 0
        (True, True)
    """
    if isinstance(engine, RequestEngine):  # a base model reads none
        engine.check_template_options(template_options or {})
    limits = Limits(max_tokens=max_tokens or MAX_TOKENS, timeout_s=timeout_s)
    if is_base_model(engine.model):
        prompt, limits = Prompt.raw(completion_text(question), plain=True), replace(limits, stop=COMPLETION_STOP)
    else:
        prompt = Prompt.chat(question, system=SHORT_ANSWER_SYSTEM, template_options=dict(template_options or {}))
    found = engine.generate(prompt, limits=limits)
    tokens = len(found.answer_token_ids)
    return FirstLook(found.text, engine.model.name, tokens, found.finish_reason, *_signals(found))


def _signals(found: Generation) -> tuple[float | None, ...]:
    kept = slice(None) if found.in_answer is None else found.in_answer
    logprobs, entropies = found.logprobs[kept], found.entropies[kept]
    if not len(logprobs):
        return (None,) * 4
    return tuple(float(each) for each in (logprobs.mean(), logprobs.min(), entropies.mean(), entropies.max()))

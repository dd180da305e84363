"""The frozen records on the way from prompt to action.

    Prompt -> Generation -> Signature -> Score -> Decision -> Outcome

Every other module imports this one, which imports only guard's errors, scores and the reading of message contents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from guard.checked import real_number, whole_number
from guard.content import instructed_text, plain_turn
from guard.errors import InputError
from guard.outcome_export import OutcomeExport
from guard.response_format import ResponseFormat
from guard.review_terms import ReviewTerms
from guard.scores import Score, ScoreName, ScoreReading, Span

if TYPE_CHECKING:  # loading numpy takes 150 ms, and a prompt or a policy does not need it
    import numpy as np
    from numpy.typing import NDArray

#: Arrays of float32 and of float64.
Floats: TypeAlias = "NDArray[np.float32]"
Doubles: TypeAlias = "NDArray[np.float64]"

#: Where a block's activations are read: the MLP's output before the residual add, the block's, or both, MLPs first.
CapturePoint = Literal["mlp", "block", "mlp+block"]

#: Why a generation ended: an end token, a stop string, or its length (the token limit or a full context).
FinishReason = Literal["stop", "stop_string", "length", "early"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt: either chat messages or a raw text, built by `Prompt.chat` or `Prompt.raw`.

    Attributes:
        messages: chat messages, each a mapping with at least ``role`` and a text as ``content`` (blocks are joined).
        text: a raw prompt, passed to the tokenizer unchanged.
        tools: JSON-schema tool definitions for chat templates that take them.
        template_options: further variables of the chat template, such as ``{"enable_thinking": False}``.
        plain: for a raw prompt, whether control tokens in its text are treated as plain text, as needed for user input.
        cache_key: only prompts with the same key share cached prefixes, so timing reveals nothing to others.
        response_format: the form that the answer must have; decoding is constrained to it.
        top_logprobs: how many of the likeliest tokens are reported at each token of the answer.

    Raises:
        InputError: a message's content is something other than text, such as an image or None.
    """

    messages: tuple[Mapping[str, Any], ...] | None = None
    text: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False
    cache_key: str | None = None
    response_format: ResponseFormat | None = None
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        if self.messages is not None:
            object.__setattr__(self, "messages", tuple(map(plain_turn, self.messages)))
        object.__setattr__(self, "template_options", dict(self.template_options))

    @classmethod
    def chat(
        cls,
        messages: str | Iterable[Mapping[str, Any]],
        *,
        system: str | None = None,
        tools: Iterable[Mapping[str, Any]] = (),
        template_options: Mapping[str, Any] | None = None,
        cache_key: str | None = None,
        response_format: ResponseFormat | None = None,
    ) -> Prompt:
        """Build a chat prompt from one user message or a list of messages.

        Args:
            messages: the user's text, or messages with ``role`` and ``content``.
            system: system message, unless the messages begin with one.
            tools: tool definitions, in the form that the model's chat template expects.
            template_options, cache_key, response_format: as in `Prompt`.

        Raises:
            InputError: there is no message, or one lacks ``role`` or a textual ``content``.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        for number, turn in enumerate(turns):
            if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
                raise InputError(f"Message {number} needs 'role' and 'content'", why=f"got {turn!r:.200}")
        if not turns:
            raise InputError("A chat prompt needs at least one message")
        if system and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": system})
        further: Any = {"cache_key": cache_key, "response_format": response_format}
        return cls(tuple(turns), None, tuple(tools), template_options or {}, **further)

    @classmethod
    def raw(cls, text: str, *, plain: bool = False, cache_key: str | None = None) -> Prompt:
        """Build a prompt without a template. Texts of control tokens become control tokens, unless it is `plain`."""
        return cls(text=text, plain=plain, cache_key=cache_key)

    def with_instruction(self, instruction: str) -> Prompt:
        """Return the prompt with an instruction for one attempt (see the policy's ``retry``).

        It is added to the user's last message; in a raw text it goes before a last line such as "Answer:".
        """
        if self.messages is None:
            return replace(self, text=instructed_text(self.text or "", instruction))
        turns = [dict(turn) for turn in self.messages]
        asked = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
        if asked is None:
            turns.append({"role": "user", "content": instruction})
        else:
            asked["content"] = f"{asked['content']}\n\n{instruction}"
        return replace(self, messages=tuple(turns))

    @property
    def question(self) -> str:
        """The question as text: the last user message, or the raw prompt."""
        if self.messages is None:
            return self.text or ""
        asked = [turn for turn in self.messages if turn["role"] == "user"] or list(self.messages)
        return str(asked[-1]["content"])


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. The default is greedy decoding.

    Attributes:
        temperature: 0 for greedy decoding; otherwise logits are divided by it before sampling.
        top_p: sample from the smallest set of tokens with at least this probability (1 keeps all).
        top_k: sample from the k most likely tokens (0 keeps all).
        seed: 0 or more, makes sampling repeatable; None draws a new seed.

    Raises:
        InputError: a value has another type or is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            object.__setattr__(self, name, real_number(name, getattr(self, name)))
        if not 0.0 <= self.temperature <= 100.0:
            raise InputError(f"temperature must be between 0 and 100, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        object.__setattr__(self, "top_k", whole_number("top_k", self.top_k, least=0))
        if self.seed is not None:
            object.__setattr__(self, "seed", whole_number("seed", self.seed, least=0))

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always chosen, as in calibration."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a generation.

    Attributes:
        max_tokens: largest number of generated tokens.
        stop: texts that end the answer; the text itself is not part of the answer.
        timeout_s: seconds from the call, including its time in the queue, after which `EngineTimeoutError` is raised.
    """

    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_tokens", whole_number("max_tokens", self.max_tokens, least=1))
        stop: Any = self.stop
        if isinstance(stop, str) or not all(isinstance(text, str) for text in stop):
            raise InputError("stop must be a tuple of texts", why=f"got a {type(stop).__name__}")
        if any(not text for text in self.stop):
            raise InputError("A stop string must not be empty")
        if self.timeout_s is not None and real_number("timeout_s", self.timeout_s) <= 0:
            raise InputError(f"timeout_s must be above 0, got {self.timeout_s}")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Identity of a loaded model; a scorer file stores a part of it (`guard.scoring.provenance.Binding`).

    Attributes:
        name: for people; a scorer is not bound to it.
        engine: ``llama.cpp``, ``transformers``, ``vllm`` or ``openai``.
        architecture: the family the engine recognised, such as ``llama`` or ``qwen2``.
        quantization: such as ``Q4_1``, ``float32`` or ``int4``.
        weights_sha256: of the weight files, or of the tensors of a model that was passed in.
        tokenizer_sha256: of the vocabulary and merges.
        chat_template_sha256: of the template's text; of the empty string without a template.
        layers: number of blocks whose MLP output is recorded (L).
        width: size of one MLP output (D).
        context_tokens: most tokens of prompt and answer together; a scorer is not bound to it.
        template_date: the date that the chat template writes, such as 2026-11-25; None if it writes none.
        deterministic: whether each request runs alone, from an empty cache; if not, others affect its scores slightly.
        served: what a server says of the model behind it; its hashes then stand for nothing.
    """

    name: str
    engine: str
    architecture: str
    quantization: str
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str
    layers: int
    width: int
    context_tokens: int
    template_date: str | None = None
    deterministic: bool = False
    served: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One answer of an engine, with the signals of its forward passes.

    The token arrays have one entry for each forward pass that chose a token, in order. T includes the end token, since
    its pass reads the last token of the answer.

    Attributes:
        text: the answer without thoughts, stop strings and special tokens; empty after an unfinished thought.
        token_ids, logprobs: shape (T,); natural log of the chosen token's probability at temperature 1.
        entropies: shape (T,), nats, of the full next-token distribution at temperature 1.
        margins: shape (T,), log-probability of the most likely token minus that of the second.
        prompt_tokens: tokens of the prompt.
        finish_reason: ``stop`` (end token), ``stop_string``, or ``length`` (token limit or full context).
        sampling: sampling parameters, with the seed that was drawn.
        queue_s, seconds: seconds spent waiting for the engine, and from the start of processing to the last token.
        capture_error: why the activations of this answer are missing, or None.
        reasoning: the model's thoughts before the answer, by its own marks; None without thoughts.
        in_answer: shape (T,), whether a token belongs to the answer (its end token too) or to a thought, not scored.
        redirected: tokens whose most likely choice the response format ruled out; None without a format.
        offsets: shape (T, 2), the characters of ``text`` that each token writes, from and to; None if unknown.
        top: for each token the likeliest ones there, as ids with log-probabilities; None where none were asked for.
        pieces: bytes of tokens by id, where the engine has no vocabulary; None where it has.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: Floats
    entropies: Floats
    margins: Floats
    prompt_tokens: int
    finish_reason: FinishReason
    sampling: Sampling
    queue_s: float
    seconds: float
    capture_error: str | None = None
    reasoning: str | None = None
    in_answer: NDArray[np.bool_] | None = None
    redirected: int | None = None
    offsets: NDArray[np.int32] | None = None
    top: tuple[tuple[tuple[int, float], ...], ...] | None = None
    pieces: tuple[bytes, ...] | None = None

    @property
    def completion_tokens(self) -> int:
        """Generated tokens, including thoughts and the end token."""
        return len(self.token_ids)

    @property
    def answer_start(self) -> int:
        """Position of the answer's first token; T without one."""
        if self.in_answer is None:
            return 0
        return int(self.in_answer.argmax()) if self.in_answer.any() else len(self.token_ids)

    @property
    def answer_token_ids(self) -> tuple[int, ...]:
        """Tokens of the answer, without those of thoughts."""
        return self.token_ids if self.in_answer is None else tuple(compress(self.token_ids, self.in_answer))

    def signals(self, signature: Signature) -> Signals:
        """Return a scorer's inputs for the answer.

        Args:
            signature: signature of the answer's tokens, from an observer.
        """
        kept = slice(None) if self.in_answer is None else self.in_answer
        return Signals(self.logprobs[kept], self.entropies[kept], self.margins[kept], signature)


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """The disagreement between layers over one answer.

    Attributes:
        maps: shape (temperatures, aggregates, L, L), float32; entry i, j is KL(p_i || p_j) in nats.
        norms: shape (aggregates, L), float32; natural log of the RMS of each layer's activation.
        temperatures: softmax temperatures, in the order of the first axis.
        aggregates: ``first``, ``last``, ``mean``, ``max`` over the answer's tokens.
        tokens: number of aggregated tokens.
        activations: shape (3, L, D), float32; of the first token, of the last, and the mean over all tokens.
    """

    maps: Floats
    norms: Floats
    activations: Floats
    temperatures: tuple[float, ...]
    aggregates: tuple[str, ...]
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Signals:
    """All inputs of a scorer for one answer.

    Attributes:
        logprobs, entropies, margins: shape (T,), as in `Generation`.
        signature: of the same tokens.
    """

    logprobs: Floats
    entropies: Floats
    margins: Floats
    signature: Signature


class Action(StrEnum):
    """An action on an answer."""

    ACCEPT = "accept"
    RETRY = "retry"
    FALLBACK = "fallback"
    ESCALATE = "escalate"
    ABSTAIN = "abstain"


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy's decision about one answer; `guard.runtime.loop` carries it out.

    Attributes:
        action: the action.
        rule: name of the rule that decided: its own ``name``, or its position such as ``rules[0]``.
        reason: one sentence for people.
        p_wrong: the score that was compared; None without one.
        settings: settings of the action (a model of `guard.policy.document`).
        spans: those above the policy's limit for spans, which are marked, cut, or the reason for another action.
    """

    action: Action
    rule: str
    reason: str
    p_wrong: float | None
    settings: Any = None
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One generation within a guarded call, with its score and decision.

    Attributes:
        answer: the text that was generated.
        source: ``model``, or the name of the fallback that answered.
        score: None if scoring failed; then ``error`` says why.
        decision: the policy's decision about this attempt.
        prompt_tokens, completion_tokens: number of tokens read, and generated.
        seconds: generation and scoring, in seconds.
        sampling, error: sampling parameters, and the reason why there is no score, or None.
        finish_reason: how the generation ended (``length``: truncated; ``early``: stopped by the policy), or None.
        reasoning: the model's thoughts before the answer; None without any, or if unknown.
        generation: what the engine reported, token by token; None for a function's answer and if a chain answered.
    """

    answer: str | None
    source: str
    score: Score | None
    decision: Decision
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    sampling: Sampling
    error: str | None = None
    finish_reason: FinishReason | None = None
    reasoning: str | None = None
    generation: Generation | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Escalation:
    """One rejected answer as handlers get it, before anybody has decided; `guard.review.Review` is its stored form.

    Attributes:
        decision_id: id of the guarded call, by which handlers recognise a repeated case.
        question, prompt: the question's text, for people, and the whole prompt.
        answer: the answer that was not accepted; None if generation failed.
        p_wrong, scorer: its score, and the scorer's digest; None if scoring failed, or if unknown.
        rule, reason: the rule that decided, and why in one sentence.
        route, policy, model: the caller's route, or None, and the names of policy and model.
        attempts, metadata: all attempts so far, and the caller's metadata of the call.
        created_at, terms: time in ISO 8601, UTC; by when, how urgently and by how many people it is reviewed.
    """

    decision_id: str
    question: str
    prompt: Prompt
    answer: str | None
    p_wrong: float | None
    rule: str
    reason: str
    route: str | None
    policy: str
    model: str
    attempts: tuple[Attempt, ...]
    metadata: Mapping[str, Any]
    created_at: str
    terms: ReviewTerms = field(default_factory=ReviewTerms)
    scorer: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome(OutcomeExport):
    """The result of a guarded call; `to_dict` and `to_json` give it as plain data.

    Attributes:
        answer: text for the caller: the model's, a fallback's, or the policy's; may be None.
        action: the action; always ``accept`` in shadow mode.
        rule, reason: the rule that decided, and why in one sentence.
        p_wrong: score of the answer that the decision is about; None without one.
        decision_id, route: id of this call in logs, the review queue and traces; the caller's route, or None.
        mode, would_be: ``enforce`` or ``shadow``; in shadow mode, the decision that enforcement would carry out.
        attempts: every generation, in order, each with its score and timing.
        escalated_to, receipts: the handlers that accepted the case, and their return values, such as a review's id.
        errors, seconds: failures of capture, scoring or handlers, each in one sentence; seconds of the whole call.
    """

    answer: str | None
    action: Action
    rule: str
    reason: str
    p_wrong: float | None
    decision_id: str
    route: str | None
    mode: str
    would_be: Decision | None
    attempts: tuple[Attempt, ...]
    escalated_to: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    seconds: float = 0.0
    receipts: Mapping[str, object] = field(default_factory=dict)

    @property
    def _score(self) -> Score | None:
        return self.attempts[-1].score if self.attempts else None

    @property
    def ood_score(self) -> float | None:
        """Out-of-distribution score, from 0 to 1, of the answer that the decision is about; None if unknown."""
        return self._score.ood_score if self._score else None

    @property
    def scores(self) -> Mapping[ScoreName, ScoreReading]:
        """The computed probabilities of the answer that the decision is about, by score; empty without a score."""
        return self._score.scores if self._score else {}

    @property
    def spans(self) -> tuple[Span, ...] | None:
        """Spans of the answer that the decision is about, before any is cut; None where the scorer gives none."""
        return self._score.spans if self._score else None

    @property
    def p_any_wrong(self) -> float | None:
        """Probability that any of these spans is wrong, as if they were independent; see `guard.scores.Score`."""
        return self._score.p_any_wrong if self._score else None

    @property
    def accepted(self) -> bool:
        """Whether the caller got the model's own answer, or what ``spans: {then: cut}`` left of it."""
        return self.action is Action.ACCEPT

    @property
    def finish_reason(self) -> FinishReason | None:
        """How the answer that the decision is about ended; ``length`` means that it is truncated."""
        return self.attempts[-1].finish_reason if self.attempts else None

    @property
    def reasoning(self) -> str | None:
        """The model's thoughts before the answer that the caller got; None if that is not a model's answer."""
        if self.action not in (Action.ACCEPT, Action.FALLBACK) or not self.attempts:
            return None
        last = self.attempts[-1]
        return last.reasoning if last.answer == self.answer else None

"""The contents of a policy document: models that mirror the YAML one to one.

They generate the JSON Schema for editors. `guard.policy.check` checks what a schema cannot express: thresholds rise,
every rule can fire, the last rule takes every answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from guard.policy.durations import Duration
from guard.policy.joined_calls import Calls
from guard.policy.lateness import Late, LateAbstain, LateFallback
from guard.policy.strict import NAME_SCHEMA, Name, OneAction, Strict, Text, or_bare
from guard.records import Action, Sampling
from guard.review_terms import Priority, ReviewTerms
from guard.scores import ScoreName

#: Severity of each action. Rules must not become more lenient as p_wrong rises. Escalation and abstention are equal,
#: since the choice between them is the author's.
SEVERITY = {Action.ACCEPT: 0, Action.RETRY: 1, Action.FALLBACK: 2, Action.ESCALATE: 3, Action.ABSTAIN: 3}

#: Each fallback is a loaded model, so a longer list would be a mistake.
MAX_FALLBACKS = 20

Below = Annotated[float, Field(gt=0, le=1, description="The rule applies if p_wrong is below this.")]
RuleName = Annotated[Name | None, Field(description="Name of the rule in decisions and logs.")]


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Handlers = Annotated[
    tuple[Name, ...],
    Field(min_length=1, max_length=20, description="Handlers that get the case: one name or a list."),
    BeforeValidator(_one_or_many),
    WithJsonSchema(
        {"anyOf": [NAME_SCHEMA, {"type": "array", "items": NAME_SCHEMA, "minItems": 1, "uniqueItems": True}]}
    ),
]


# -- actions and their settings ----------------------------------------------------------------


class Accept(Strict):
    """Give the answer to the caller."""


class Mark(Accept):
    """Give the answer to the caller, with its likely wrong spans marked."""


class Cut(Accept):
    """Give the answer to the caller without its likely wrong spans."""


class Retry(Strict):
    """Ask the same model again with other settings; the new answer is scored and decided on like the first."""

    times: int = Field(default=1, ge=1, le=20, description="Most retries of the whole call.")
    temperature: float = Field(default=0.7, ge=0, le=100, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Smallest set of tokens with this probability.")
    top_k: int = Field(default=0, ge=0, description="Keep the k likeliest tokens; 0 keeps all.")
    seed: int | None = Field(
        default=None, ge=0, lt=2**32, description="Seed of the first retry; later ones count up from it."
    )
    instruction: Text | None = Field(default=None, description="Text added to the prompt.")
    max_tokens: int | None = Field(
        default=None, ge=1, description="Token limit of the retry; the call's own where that is higher."
    )

    def sampling(self, retry: int) -> Sampling:
        """Return the sampling parameters of a retry, counted from 1.

        Each retry has its own seed, since the same seed would give the same answer.
        """
        seed = None if self.seed is None else self.seed + retry - 1
        return Sampling(self.temperature, self.top_p, self.top_k, seed)


class Fallback(Strict):
    """Return the answer of another engine, which is scored too, or a fixed text, which is final."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["to"]}, {"required": ["text"]}]},
    )

    to: Name | None = Field(default=None, description="Name of the engine or callable.")
    text: Text | None = Field(default=None, description="Fixed answer for the caller.")

    @model_validator(mode="after")
    def _to_or_text(self) -> Fallback:
        if (self.to is None) == (self.text is None):
            raise PydanticCustomError("guard", "fallback needs exactly one of 'to' and 'text'")
        return self


class Escalate(Strict):
    """Hand the question and the answer to a person or a program."""

    model_config = ConfigDict(json_schema_extra={"dependentRequired": {"late": ["within"]}})

    to: Handlers = ("review",)
    reply: Text | None = Field(default=None, description="Reply to the caller meanwhile.")
    within: Duration | None = Field(default=None, description="Time for a person to decide, such as 4h or 30min.")
    priority: Priority = Field(default="normal", description="Which cases reviewers get first.")
    reviews: int = Field(
        default=1, ge=1, le=2, description="2 for a blind second opinion, and a third person where the two differ."
    )
    late: Late | None = Field(
        default=None, description="What the caller gets when nobody decided in time. Left out: abstain."
    )

    @model_validator(mode="after")
    def _each_once(self) -> Escalate:
        if len(set(self.to)) < len(self.to):
            raise PydanticCustomError("guard", "'to' names a handler twice")
        if self.late is not None and self.within is None:
            message = "'late' needs 'within' beside it, as in escalate: {within: 4h, late: abstain}"
            raise PydanticCustomError("guard", message)
        return self

    @property
    def terms(self) -> ReviewTerms:
        """What is asked of reviewers."""
        late = None if self.within is None else (self.late or Late(abstain=LateAbstain())).terms
        return ReviewTerms(self.within, self.priority, self.reviews, late)


class Abstain(Strict):
    """Give no answer: a fixed text, nothing at all, or an exception."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["text", "raise"]}})

    text: Text | None = Field(default=None, description="Text for the caller in place of an answer.")
    raises: bool = Field(default=False, alias="raise", description="Raise AbstainedError in the caller's code.")

    @model_validator(mode="after")
    def _text_or_raise(self) -> Abstain:
        if self.raises and self.text is not None:
            raise PydanticCustomError("guard", "abstain takes 'text' or 'raise', not both")
        return self


ActionSettings = Accept | Retry | Fallback | Escalate | Abstain


@dataclass(frozen=True, slots=True)
class RiskGuarantee:
    """With this confidence, at most a share ``max_error_rate`` of the accepted answers is wrong."""

    max_error_rate: float
    confidence: float

    def __str__(self) -> str:
        return f"max_error_rate {self.max_error_rate:g} at confidence {self.confidence:g}"


# The same actions as rules, with a threshold and a name. Retries and fallbacks are limited, so
# they always need a threshold: the rule that takes every answer must be another one.


class AcceptRule(Accept):
    model_config = ConfigDict(
        json_schema_extra={
            "dependentRequired": {"max_error_rate": ["confidence"], "confidence": ["max_error_rate"]},
            "not": {"required": ["below", "max_error_rate"]},
        },
    )

    below: Below | None = None
    max_error_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Largest share of wrong answers among the accepted; a certificate gives the threshold.",
    )
    confidence: float | None = Field(
        default=None, ge=0.5, lt=1, description="Probability with which max_error_rate must hold."
    )
    name: RuleName = None

    @model_validator(mode="after")
    def _threshold_or_guarantee(self) -> AcceptRule:
        if (self.max_error_rate is None) != (self.confidence is None):
            there, missing = "max_error_rate", "confidence"
            if self.max_error_rate is None:
                there, missing = missing, there
            message = "'{there}' needs '{missing}' beside it, as in accept: {{max_error_rate: 0.05, confidence: 0.9}}"
            raise PydanticCustomError("guard", message.format(there=there, missing=missing))
        if self.max_error_rate is not None and self.below is not None:
            raise PydanticCustomError("guard", "accept takes 'below' or 'max_error_rate', not both")
        return self

    @property
    def guarantee(self) -> RiskGuarantee | None:
        """The risk guarantee about the accepted answers, if the rule has one."""
        if self.max_error_rate is None or self.confidence is None:
            return None
        return RiskGuarantee(self.max_error_rate, self.confidence)


class RetryRule(Retry):
    below: Below
    name: RuleName = None


class FallbackRule(Fallback):
    below: Below
    name: RuleName = None


class EscalateRule(Escalate):
    below: Below | None = None
    name: RuleName = None


class AbstainRule(Abstain):
    below: Below | None = None
    name: RuleName = None


AnyRule = AcceptRule | RetryRule | FallbackRule | EscalateRule | AbstainRule


class NullFree(GenerateJsonSchema):
    """Generates the schema without null, since a key without a value is a mistake in a policy."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        described = super().default_schema(schema)
        if described.get("default", ...) is None:
            del described["default"]
        return described


# -- the document ------------------------------------------------------------------------------


class Rule(OneAction):
    """One rule: an action, the threshold below which it is taken, and its settings."""

    model_config = ConfigDict(json_schema_extra=or_bare("accept", "escalate", "abstain"))

    accept: AcceptRule | None = None
    retry: RetryRule | None = None
    fallback: FallbackRule | None = None
    escalate: EscalateRule | None = None
    abstain: AbstainRule | None = None

    @property
    def settings(self) -> AnyRule:
        """The settings of the action."""
        settings: AnyRule = getattr(self, self.action)
        return settings

    @property
    def guarantee(self) -> RiskGuarantee | None:
        """The risk guarantee for which a certificate gives the threshold; None where the rule states a threshold."""
        return self.accept.guarantee if self.accept else None


class OnError(OneAction):
    """The action if there is no score. Not a retry, since what failed would most likely fail again."""

    model_config = ConfigDict(json_schema_extra=or_bare("accept", "escalate", "abstain"))

    accept: Accept | None = None
    fallback: Fallback | None = None
    escalate: Escalate | None = None
    abstain: Abstain | None = None


class DefectAction(OneAction):
    """The action for a truncated or empty answer, whatever its score."""

    model_config = ConfigDict(json_schema_extra=or_bare("accept", "retry", "escalate", "abstain"))

    accept: Accept | None = None
    retry: Retry | None = None
    fallback: Fallback | None = None
    escalate: Escalate | None = None
    abstain: Abstain | None = None


class OutOfDistributionAction(OneAction):
    """The action for an out-of-distribution input. Not a retry, since the input would be the same again."""

    model_config = ConfigDict(json_schema_extra=or_bare("escalate", "abstain"))

    fallback: Fallback | None = None
    escalate: Escalate | None = None
    abstain: Abstain | None = None


class OutOfDistribution(Strict):
    """The section for inputs unlike the calibration data, which decides before the rules."""

    above: float = Field(
        gt=0,
        lt=1,
        description="Applies if more than this share of the calibration answers is nearer to the calibration data.",
    )
    then: OutOfDistributionAction


class EarlyAction(OneAction):
    """The action for an answer that is stopped before its end. Never the answer, nor a retry of the same model."""

    model_config = ConfigDict(json_schema_extra=or_bare("escalate", "abstain"))

    fallback: Fallback | None = None
    escalate: Escalate | None = None
    abstain: Abstain | None = None


class Early(Strict):
    """The section that stops an answer while it is generated, once it is likely to be wrong in the end."""

    above: float = Field(
        gt=0, lt=1, description="Applies if the p_wrong of the answer so far, calibrated at that length, is above this."
    )
    then: EarlyAction


class CertificateLost(OneAction):
    """What takes the place of every accepted answer once the route's certificate is suspended. Never the answer."""

    model_config = ConfigDict(json_schema_extra=or_bare("escalate", "abstain"))

    fallback: LateFallback | None = None
    escalate: Escalate | None = None
    abstain: Abstain | None = None


class Audit(Strict):
    """A random share of the accepted answers goes to people too, without waiting for them."""

    rate: float = Field(gt=0, le=1, description="Share of the accepted answers that people check.")
    within: Duration = Field(
        default="7d",
        validate_default=True,
        description="Time to check one; an answer that nobody has checked by then counts as wrong.",
    )
    priority: Priority = Field(default="low", description="Which cases reviewers get first.")
    false_alarms: float = Field(
        default=0.05, gt=0, le=0.5, description="Probability of ever suspending a certificate that holds."
    )


class SpansAction(OneAction):
    """The action for an answer that the rules accept, and that has spans which are likely wrong."""

    model_config = ConfigDict(json_schema_extra=or_bare("mark", "cut", "retry", "escalate"))

    mark: Mark | None = None
    cut: Cut | None = None
    retry: Retry | None = None
    escalate: Escalate | None = None

    @property
    def action(self) -> Action:
        """The one action; an answer with marked or cut spans is accepted."""
        (name,) = self.model_fields_set
        return Action.ACCEPT if name in ("mark", "cut") else Action(name)


class Spans(Strict):
    """The section for parts of an answer, which decides after the rules have accepted the whole."""

    above: float = Field(gt=0, lt=1, description="Applies if the p_wrong of a span is above this.")
    then: SpansAction


class Budget(Strict):
    """Limits of one guarded call, for all its attempts together."""

    attempts: int = Field(default=4, ge=1, le=100, description="Generated answers, including the first.")
    tokens: int = Field(default=20_000, ge=1, description="Tokens of all prompts and answers together.")
    seconds: float = Field(default=120.0, gt=0, description="Wall time of the call.")


class FallbackEngine(Strict):
    """Another model for ``fallback: {to: ...}``."""

    model: Text = Field(description="A GGUF file or the folder of a model.")
    scorer: Text | None = Field(default=None, description="The scorer fitted on that model.")


class Route(Strict):
    """The rules if the caller names this route; missing sections are those of calls without a route."""

    rules: tuple[Rule, ...] | None = Field(default=None, min_length=1, max_length=100)
    on_error: OnError | None = None
    truncated: DefectAction | None = None
    empty: DefectAction | None = None
    out_of_distribution: OutOfDistribution | None = None
    spans: Spans | None = None
    early: Early | None = None
    audit: Audit | None = None
    on_certificate_lost: CertificateLost | None = None
    budget: Budget | None = None


class ToolRules(Strict):
    """The rules if an answer calls this tool; missing sections are those of other answers."""

    rules: tuple[Rule, ...] | None = Field(default=None, min_length=1, max_length=100)
    on_error: OnError | None = None


class Document(Strict):
    """A guard policy: actions on an answer by its probability of being wrong."""

    model_config = ConfigDict(title="guard policy")

    version: Annotated[int, WithJsonSchema({"const": 1})] = Field(ge=1, le=1, description="Always 1.")
    name: Name = Field(description="Name of the policy in decisions and logs.")
    description: Text | None = Field(default=None, description="For people.")
    mode: Literal["enforce", "shadow"] = Field(
        default="enforce", description="shadow records what enforce would do and changes nothing."
    )
    score: ScoreName = Field(
        default="guard",
        description="The score that p_wrong is: guard's own, the published method (ilis) alone, or log-probabilities "
        "alone.",
    )
    rules: tuple[Rule, ...] = Field(
        min_length=1, max_length=100, description="Tried in order; the first that applies decides."
    )
    on_error: OnError = Field(
        default_factory=lambda: OnError(abstain=Abstain()),
        description="The action if the answer could not be scored.",
    )
    truncated: DefectAction | None = Field(
        default=None,
        description="The action for an answer truncated by its token limit or the end of the context, whatever its "
        "score; accept lets the rules decide. By default as on_error, but never accept.",
    )
    empty: DefectAction | None = Field(
        default=None,
        description="The action for a blank answer, whatever its score; accept lets the rules decide. "
        "By default as on_error, but never accept.",
    )
    out_of_distribution: OutOfDistribution | None = Field(
        default=None,
        description="The action for an input unlike the calibration data, whatever the score.",
    )
    audit: Audit | None = Field(
        default=None, description="Sends a random share of the accepted answers to review, without holding them back."
    )
    on_certificate_lost: CertificateLost | None = Field(
        default=None,
        description="The action for every answer that would be accepted while the certificate is suspended. "
        "Left out: abstain.",
    )
    spans: Spans | None = Field(
        default=None,
        description="The action for an accepted answer with spans (lines, list items, sentences) that are likely "
        "wrong; needs a scorer with a model of spans.",
    )
    early: Early | None = Field(
        default=None,
        description="Stops an answer that is likely to be wrong in the end; needs a scorer with early stages.",
    )
    budget: Budget = Budget()
    calls: Calls = Field(default=Calls(), description="Which scores decide if there are several.")
    streaming: Literal["hold", "live"] = Field(
        default="hold",
        description="hold: nothing of an answer is shown before its decision; live: text is shown as it is "
        "generated, and retracted if the answer is likely wrong.",
    )
    certificate: Text | None = Field(
        default=None,
        description="Certificate file of guard certify, with the thresholds of max_error_rate. Relative to this file.",
    )
    fallbacks: dict[Name, FallbackEngine] = Field(default={}, max_length=MAX_FALLBACKS)
    routes: dict[Name, Route] = Field(default={}, max_length=500)
    tools: dict[Name, ToolRules] = Field(
        default={},
        max_length=500,
        description="Rules of answers that call a tool, by its name; 'default' is for tools that are not named.",
    )

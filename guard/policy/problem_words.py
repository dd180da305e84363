"""What the problems of a policy say: pydantic's error types, and refused actions, in words for policy authors."""

from __future__ import annotations

#: Why an action is not for out-of-distribution inputs.
NOT_FOR_OOD = {
    "accept": "leave the section out to treat such inputs like others",
    "retry": "the input would be the same again",
}
#: Why an action is not for spans.
NOT_FOR_SPANS = {
    "accept": "leave the section out, or write mark",
    "fallback": "write retry, and let its rules fall back",
    "abstain": "write cut, retry or escalate; an exhausted retry does what on_error says, and never accepts",
}
#: Why an action is not for answers that are stopped early.
NOT_FOR_EARLY = {
    "accept": "what there is of the answer is not complete",
    "retry": "the same model would most likely fail again. Write fallback, escalate or abstain",
}
#: Why an action is not for late cases.
NOT_WHEN_LATE = {
    "accept": "nobody has looked at the answer",
    "retry": "the caller's call has ended",
    "escalate": "the case stays in the queue, and late cases can notify whom you like",
}
_NAME_WANTED = "must be a name: one line, no control characters, no spaces around it"
#: Explanations of pydantic's error types for policy authors.
WANTED = {
    "string_type": "must be text",
    "string_unicode": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "may have at most {max_length} characters",
    "string_pattern_mismatch": _NAME_WANTED,
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "model_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "too_long": "may have at most {max_length} entries",
}

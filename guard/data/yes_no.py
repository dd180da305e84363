"""Checks whether an answer says yes or no, or evades the question after such a word."""

from __future__ import annotations

import re
from collections.abc import Sequence

from guard.data.doubts import DENIALS, doubted, taken_back
from guard.data.normalised import normalise
from guard.data.sentences import first_sentence

_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
#: Words that may follow without punctuation: "No it is not".
_SUBJECTS = frozenset(
    {"it", "he", "she", "they", "this", "that", "these", "those", "there", "we", "you", "its", "the", "a", "an", "not"}
    | {"never", "way", "sir", "madam", "thanks", "indeed", "they're", "is", "it's", "he's", "she's", "i"}
)
_STATED = re.compile(
    r"(?:(?:sure|well|so|ok|okay|certainly)[,.!]? )?(?:i (?:think|believe|would say)(?: that)?,? )?"
    r"(?:(?P<pronoun>it|that|this|which)?(?:the |my |correct |final |short )*(?:answer|statement|claim|sentence)?"
    r"(?:\s+(?:is|was|would be)|['’]s|:)[\s:*\"'“]+)?",
    re.IGNORECASE,
)
_EXCUSES = re.compile(
    r"\b(?:sorry|apolog\w+|unable|as an? (?:ai|language)|(?:an ai|language) model|i(?: a|['’])m an ai"
    r"|can(?:not| not|['’]?t) (?:say|tell|answer|help|know|confirm|determine|provide|comment|share|assist|give"
    r"|verify)"
    r"|do(?: not|n['’]?t) know|hard to (?:say|tell)|difficult to (?:say|tell)|who knows|not (?:sure|certain|clear)"
    r"|unsure|uncertain|unclear|unknown|depends?|depending|partly|partially|in part|half|sometimes|occasionally"
    r"|at times"
    r"|sort of|kind of|in a (?:sense|way)|to (?:some|an|a certain) (?:extent|degree)|in (?:some|certain|many"
    r"|most) (?:cases|ways)"
    r"|myth|misconception|disputed|debat\w+|controversial|arguabl\w+|opinion|allegedly|supposedly|reportedly"
    r"|rumou?r\w*"
    r"|under (?:some|certain|many|most)|kidding|joking|guess|way (?:to|of)|help you|assist|(?:happy|glad|love"
    r"|like|pleased) to|(?:great|good|interesting|excellent) (?:question|point)"
    r"|i (?:can|could|will|would|understand|see|hear|am here|might|may)\b|let me|please|try again|no (?:doubt"
    r"|question))\b"
    r"|[?？]",
    re.IGNORECASE,
)


def is_yes_or_no(words: Sequence[str]) -> bool:
    """Return whether an accepted answer, normalised, is such a word."""
    return len(words) == 1 and words[0] in _OPPOSITES


def says(answer: str, gold: str) -> bool:
    """Return whether an answer begins with the word and neither withdraws it nor evades the question.

    Args:
        answer: the model's answer.
        gold: ``yes``, ``no``, ``true`` or ``false``.

    Examples:
        >>> says("Yes, it is.", "yes"), says("Yes, sorry, I do not know.", "yes"), says("No idea.", "no")
        (True, False, False)
    """
    said = answer.strip().lstrip("*_\"'“([ ")
    lead = _STATED.match(said)
    said = said[lead.end() :] if lead else said
    match = re.match(rf"{gold}\b", said, re.IGNORECASE)
    if not match or (lead and lead["pronoun"] and gold in {"yes", "no"}):  # "It is no" begins another sentence
        return False
    rest = said[match.end() :]
    follows = re.match(r"[*_\"'”)\]]*[ \t]+([\w'’]+)", rest)
    if re.match(r"[.\s]{1,2}\d", rest) or (follows and follows[1].casefold() not in _SUBJECTS):
        return False
    first, following = first_sentence(f"{gold}{rest}")
    reason = first[len(gold) :]
    if _EXCUSES.search(reason) or _EXCUSES.search(following) or taken_back(following):
        return False
    denied = DENIALS if gold in {"no", "false"} else frozenset()
    return _OPPOSITES[gold] not in normalise(reason).split() and not doubted(reason, allowed=denied)

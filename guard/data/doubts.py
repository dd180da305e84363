"""Words that can make an answer wrong although it contains the right one.

A denial ("couldn't be Paris"), an alternative ("A or B"), a comparison ("more than 5") in one of the
languages that small models answer in. Graders treat such answers as wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

_ENGLISH = frozenset(
    {"no", "not", "non", "never", "neither", "nor", "none", "nobody", "nothing", "without", "unlike", "except"}
    | {"excluding", "excludes", "instead", "rather", "than", "or", "either", "but", "unknown", "unsure", "cannot"}
    | {"wrong", "incorrect", "false", "untrue", "mistaken", "hardly", "barely", "scarcely", "unlikely", "doubt"}
    | {"doubtful", "doubted", "impossible", "contrary", "vs", "versus", "anti", "denies", "denied", "deny"}
    | {"maybe", "perhaps", "possibly", "though", "although", "however", "whereas", "if", "unless", "myth", "lacks"}
    | {"former", "formerly", "previously", "opposite", "near", "nearby", "besides", "beside", "rival", "lack"}
    | {"neighbour", "neighbor", "everyone", "everybody", "eliminate", "least", "twice", "half", "fewer"}
    | {"guess", "allegedly", "supposedly", "reportedly", "apparently", "presumably", "might", "tempting", "trap"}
)
#: Contractions without their apostrophe.
_CONTRACTIONS = frozenset(
    {"isnt", "wasnt", "arent", "werent", "doesnt", "didnt", "dont", "cant", "couldnt", "wouldnt", "shouldnt", "wont"}
    | {"hasnt", "havent", "hadnt", "mustnt", "neednt", "mightnt", "maynt", "aint", "shant", "darent", "oughtnt"}
)
#: German, Dutch; French, Spanish, Portuguese, Italian; Scandinavian; Polish; Turkish; Russian, Ukrainian.
_OTHER_LANGUAGES = frozenset(
    {"nicht", "kein", "keine", "keinen", "keiner", "keines", "nie", "niemals", "weder", "noch", "oder", "sondern"}
    | {"ausser", "falsch", "niet", "geen", "ofwel"}
    | {"pas", "jamais", "ni", "ou", "sauf", "faux", "nunca", "o", "sino", "excepto", "nao", "mai", "oppure", "tranne"}
    | {"inte", "icke", "eller", "ikke", "aldrig", "aldri", "lub", "albo", "degil", "veya"}
    | {"не", "ни", "или", "нет", "кроме", "неверно", "ні", "або"}
)
#: Words of doubt, in lower case, without accents and apostrophes.
DOUBTS = _ENGLISH | _CONTRACTIONS | _OTHER_LANGUAGES
#: The same for languages without spaces between words.
_CJK = re.compile(
    "[不没沒非未否勿或]|还是|還是|除了|以外|または|あるいは|もしくは|それとも|ない|ません|なく|なかった|じゃ|か[、？?]|ですか"
    "|아니|아닌|아닙|않|또는|혹은|못|거나"
)
#: Denials that can follow a "no": "No, it is not."
DENIALS = _CONTRACTIONS | {"no", "not", "never", "neither", "nor", "none", "nothing", "cannot", "without", "false"}
DENIALS |= {"wrong", "incorrect", "untrue"}
#: Phrases such as "far from" and "at least", whose single words are harmless.
_PHRASES = re.compile(
    r"\b(?:far from|other than|at least|at most|up to|as (?:many|much) as|as (?:few|little) as|out of the question"
    r"|used to|rules? out|ruled out|is out"
    r"|(?:some|many|most|few|others|people|they|you|students?|children|kids|tourists?|friends?|llms?|models?)"
    r" (?:\w+ ){0,3}(?:say|think|believe|claim|answer|guess|write|reply|pick|choose|call)s?"
    r"|(?:common|typical|frequent|popular) (?:mistake|error|misconception|guess)"
    r"|(?:naive|obvious|tempting|intuitive|popular|typical) answer"
    r"|(?:north|south|east|west|outskirts|moon|moons|son|daughter|wife|husband|father|mother|pupil|rival) of"
    r"|until (?:recently|then|lately)|no longer|next door|(?:followed|preceded|influenced|inspired|taught"
    r"|replaced|succeeded"
    r"|defeated|beaten) by|(?:close|next|similar|compared|adjacent|prior) (?:to|with)|second (?:only )?to)\b"
    r"|^\W*when\b|[✗✘❌→⇒]"
)
#: Phrases that make an answer one example of many: "cities such as Paris", "Jupiter etc."
_EXAMPLES = re.compile(
    r"\b(?:such as|for (?:example|instance)|e\.? ?g|includ(?:e|es|ing|ed)|among(?:st)? (?:others?|them|which"
    r"|these|those)"
    r"|inter alia|etc|and (?:so (?:on|forth)|the like|others?|more|many|several)|et al|especially|particularly"
    r"|for one|any|anything|anyone|anywhere|(?:one|1) (?:option|possibility|candidate|example)|an example|examples"
    r"|z\.? ?b|zum beispiel|beispielsweise|usw|u\.? ?a|unter anderem|par exemple|p\.? ?ex|notamment"
    r"|entre autres|tels? que"
    r"|por ejemplo|p\.? ?ej|entre otr[oa]s|incluyendo|incluid[oa]|per esempio|ad esempio|ecc|tra cui"
    r"|por exemplo|entre outr[oa]s"
    r"|bijvoorbeeld|bv|enzovoort|till exempel|t\.? ?ex|na przyklad|np|например|в том числе|и т\.? ?д|и др)\b"
    r"|例えば|たとえば|例如|比如|譬如|など|等(?![于於])|예를 들어|예컨대|같은"
)
_TAKEN_BACK = re.compile(
    r"^[\W_]*(?:no|nope|not|wait|actually|sorry|correction|scratch that|oops|hmm|on (?:second|reflection)\w*"
    r"|rather|or)\b"
    r"|\b(?:(?:not|n['’]t|never) (?:\w+ )?(?:sure|certain|know|confident|positive)|(?:un|in)correct|unsure|uncertain"
    r"|(?:could|might|may|must|am|was) be (?:wrong|mistaken)|(?:am|was|is|['’]s) (?:wrong|mistaken|incorrect|false)"
    r"|just (?:kidding|guess\w*|a guess)|only a guess|joking|my (?:mistake|bad|error)|i (?:meant?|guess|apologi[sz]e)"
    r"|on second thought|let me (?:correct|rephrase|re-?check|think|re-?consider)|made (?:a|an) (?:mistake|error)"
    r"|correct(?:ed)? answer is|(?:it|that|answer) should (?:have been|be))\b",
    re.IGNORECASE,
)
#: Words that join two names: "Paris and London", "Paris und London".
CONJUNCTIONS = frozenset({"and", "und", "et", "y", "e", "och", "og", "en", "и", "oraz", "ve"})


def doubted(text: str, *, allowed: Collection[str] = ()) -> bool:
    """Return whether a text has a word of doubt in any known language.

    Args:
        text: a sentence, without the answer that it states.
        allowed: words that do not count as doubt.
    """
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text)).casefold()
    plain = re.sub(r"[\u0300-\u036f'’ʼ`´]", "", plain)
    words = set(re.findall(r"[^\W_]+", plain)) - set(allowed)
    if not DOUBTS.isdisjoint(words) or _PHRASES.search(plain) or _EXAMPLES.search(plain):
        return True
    return _CJK.search(unicodedata.normalize("NFKC", text)) is not None


def taken_back(following: str) -> bool:
    """Return whether the text after a statement withdraws it: "No, wait ...", "I am not sure."."""
    return _TAKEN_BACK.search(following) is not None

"""Answers in languages without spaces between words: Chinese, Japanese, Korean."""

from __future__ import annotations

import re
import unicodedata

from guard.data.doubts import doubted

#: A character of one of these languages.
CJK_SIGN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_LEAD = re.compile(r"(?:^|[\W_]|[はが：:]|[是为為叫])[\s「『“\"'(（《]*$")
_END = re.compile(
    r"[」』”\"')）》]*(?:です|でした|だ|だった|である|になります|입니다|이다|예요|이에요|이었습니다|였습니다)?[\s。．.!！]*$"
)


def states_at_end(gold: str, sentence: str) -> bool:
    """Return whether a Chinese, Japanese or Korean sentence ends by stating an accepted answer.

    Examples:
        >>> states_at_end("東京", "首都は東京です。"), states_at_end("東京", "東京タワーです。")
        (True, False)
    """
    said, wanted = (unicodedata.normalize("NFKC", text).strip().casefold() for text in (sentence, gold))
    if not wanted or not CJK_SIGN.search(said) or said.count(wanted) != 1:
        return False
    before, _, after = said.partition(wanted)
    found = _LEAD.search(before) and _END.fullmatch(after)
    return bool(found) and not doubted(f"{before} _ {after}")

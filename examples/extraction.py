"""Facts from texts as objects; if the model is not sure, nothing is extracted.

python extraction.py "Maria, who is 31, moved to Lisbon."
"""

from __future__ import annotations

import sys
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel

from guard import parse_policy
from guard.langchain import ChatGuard, guarded

TEXTS = ["Maria, who is 31, moved to Lisbon.", "Somebody left an umbrella on the bus.", "Peter Lang turned 70 in May."]

# The shipped scorer has learnt from short answers to questions. JSON is new to it (its ood_score is above .999),
# and its probabilities are all too high here, though right ones are mostly the lower ones. With a scorer that
# was fitted on texts and objects of your own, this threshold means what it says.
POLICY = """
version: 1
name: extraction
rules:
  - accept: {below: 0.75}
  - abstain              # None in place of an object
"""


class Person(BaseModel):
    """A person who is named in a text."""

    name: str
    age: int


#: A small model follows examples better than a schema.
PROMPT = ChatPromptTemplate.from_messages(
    [
        ("user", "John is 44 years old."),
        ("ai", '{{"name": "John", "age": 44}}'),
        ("user", "At the age of 8 Lisa learned to swim."),
        ("ai", '{{"name": "Lisa", "age": 8}}'),
        ("user", "{text}"),
    ]
)


def extract(texts: list[str], scorer: Any = None) -> list[Person | None]:
    """One person a text; None where the policy abstains or the answer is no `Person`."""
    model = ChatGuard(model="smollm2", scorer=scorer, max_tokens=24, system="Write the person in the text as JSON.")
    chain: Any = guarded(PROMPT | model.with_structured_output(Person, method="json_mode"), policy=parse_policy(POLICY))
    people: list[Person | None] = []
    for text in texts:
        try:
            people.append(chain.invoke({"text": text}))
        except OutputParserException:  # sure of itself, and yet not what was asked for
            people.append(None)
    return people


def main(texts: list[str] = TEXTS, scorer: Any = None) -> list[Person | None]:
    """Extract and print."""
    people = extract(texts, scorer)
    for text, person in zip(texts, people, strict=True):
        print(f"{text}\n  {person or 'nothing that is sure enough'}")
    return people


if __name__ == "__main__":
    main(sys.argv[1:] or TEXTS)

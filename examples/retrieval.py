"""Questions with and without a retrieved text: the retrieved text decides what is answered.

    python retrieval.py "Where was Marie Curie born?"

Each question is asked twice: alone, and with the best matching text. With the answer in the prompt the model is more
certain and more often right; the policy is the same.

The vectors are TF-IDF weights, computed in a few lines without another model, so that the example runs anywhere;
replace them with any LangChain embedding.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from guard import parse_policy
from guard.langchain import ChatGuard, GuardedOutcome, GuardedRunnable, guarded

TEXTS = [
    "Ulan Bator is the capital of Mongolia.",
    "The Danube is 2850 kilometres long.",
    "Marie Curie was born in Warsaw.",
    "The chemical symbol of tungsten is W.",
    "The cheetah is the fastest land animal.",
]
QUESTIONS = [
    "What is the capital of Mongolia?",
    "Where was Marie Curie born?",
    "What is the chemical symbol of tungsten?",
    "Who was the first person to ski down Mount Elbrus?",  # the texts don't say
]

POLICY = """
version: 1
name: texts
rules:
  - accept: {below: 0.6}
  - abstain: {text: I do not know.}
on_error:                     # an answer that is cut at its limit, too
  abstain: {text: I do not know.}
"""
RULES = parse_policy(POLICY)


class TfIdf(Embeddings):
    """Words, weighted by how rare they are among the texts."""

    def __init__(self, texts: list[str]) -> None:
        seen = Counter(word for text in texts for word in set(_words(text)))
        self._weights = {word: math.log(len(texts) / count) + 1 for word, count in sorted(seen.items())}

    def embed_query(self, text: str) -> list[float]:
        counts = Counter(_words(text))
        # The constant keeps the vector of a question without any known word from being zero.
        return [*(counts[word] * weight for word, weight in self._weights.items()), 0.01]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def from_memory(model: ChatGuard) -> GuardedRunnable[str, str]:
    """The guarded question alone."""
    prompt = ChatPromptTemplate.from_messages([("user", "{question}")])
    return guarded({"question": RunnablePassthrough()} | prompt | model | StrOutputParser(), policy=RULES)


def from_texts(model: ChatGuard) -> GuardedRunnable[str, str]:
    """Retrieve, ask, decide."""
    retriever = InMemoryVectorStore.from_texts(TEXTS, TfIdf(TEXTS)).as_retriever(search_kwargs={"k": 1})
    prompt = ChatPromptTemplate.from_messages([("user", "{context}\n\n{question}")])
    found = {"context": retriever | _joined, "question": RunnablePassthrough()}
    return guarded(found | prompt | model | StrOutputParser(), policy=RULES)


def _joined(documents: list[Document]) -> str:
    return "\n".join(document.page_content for document in documents)


def main(questions: list[str] = QUESTIONS, scorer: Any = None) -> list[tuple[GuardedOutcome, GuardedOutcome]]:
    """Ask each question from memory and from the texts."""
    model = ChatGuard(model="smollm2", scorer=scorer, max_tokens=20)
    chains = from_memory(model).with_outcome(), from_texts(model).with_outcome()
    answers = []
    for question in questions:
        alone, informed = (chain.invoke(question) for chain in chains)
        print(question)
        for name, answer in (("from memory", alone), ("with a text", informed)):
            print(f"  {name}: {answer.output}  (wrong with probability {answer.outcome.p_wrong:.2f})")
        answers.append((alone, informed))
    return answers


if __name__ == "__main__":
    main(sys.argv[1:] or QUESTIONS)

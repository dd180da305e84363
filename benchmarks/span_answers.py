"""Longer answers of a model with labelled lines and sentences, for `spans.py`.

    python benchmarks/span_answers.py kept.jsonl --data QUESTION_SETS [--model FILE.gguf] [--limit 30] [--only prose]

Lists of facts (countries, elements, cities), sums, word problems, free prose about countries and elements, and short
biographies, labelled by the tables of the question sets and by computing; and HaluEval's right and invented answers,
given to the model as if it had written them, with and without the passage. A model with a chat template is asked by
messages, another (or with --completion) by a text with a solved example. Kept are, for each labelled line, the three
columns that guard reads, scores that nothing is fitted for, and the texts. What is kept is not asked again. Sets take
turns, so that a stopped run has some of each.

The claim-conditioned probability (arXiv:2403.04696) asks a language model for inference which alternatives to a token
would say the same. There is none here: an alternative says the same where one text begins with the other, a
function word or a mark says nothing, and anything else contradicts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.data.in_order import in_order
from guard.data.labelled_spans import ExpectedClaim, MarkedPlace, SpanRow
from guard.engines import EMBEDDED, load_engine
from guard.engines.tokenizing import TokenizingEngine
from guard.records import Generation, Limits, Prompt
from guard.scoring.span_scores import AnswerSpans
from guard.scoring.spans import Extent

#: Likeliest tokens that the claim-conditioned probability looks at.
TOP = 10
CHUNK = 16
_FUNCTION_WORDS = frozenset(
    (
        "a",
        "an",
        "the",
        "of",
        "in",
        "is",
        "was",
        "are",
        "on",
        "at",
        "and",
        "or",
        "to",
        "its",
        "it",
        "by",
        "for",
        "as",
        "with",
    )
)


@dataclass(frozen=True, slots=True)
class SpanTask:
    """One question for a longer answer.

    Attributes:
        dataset: what kind it is.
        key: unique among all tasks.
        header: what a model without a chat template reads behind the example, and a claim must add something to.
        chat: the message.
        example: a solved example for a model without a chat template; empty where such a model is not asked.
        row: labels the answer.
        stop: ends the answer of a model without a chat template.
    """

    dataset: str
    key: str
    header: str
    chat: str
    example: str
    row: SpanRow
    stop: str = "\n\n"

    def prompt(self, *, completion: bool) -> Prompt:
        """Return what the model reads."""
        return Prompt.raw(self.example + self.header, plain=True) if completion else Prompt.chat(self.chat)


# -- what is asked -----------------------------------------------------------------------------


@dataclass(slots=True)
class FactTables:
    """Facts by subject and relation."""

    folder: Path
    seed: int = 0
    _rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the questions of a set, shuffled."""
        if name not in self._rows:
            with gzip.open(self.folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
                self._rows[name] = [json.loads(line) for line in file]
            random.Random(self.seed).shuffle(self._rows[name])
        return self._rows[name]

    def facts(self, name: str, pattern: str) -> dict[str, dict[str, list[str]]]:
        """Return accepted answers by subject and category; a pattern finds the subject in a question."""
        found: dict[str, dict[str, list[str]]] = {}
        for row in self.rows(name):
            if match := re.search(pattern, row["question"]):
                found.setdefault(match.group(1), {})[row["category"]] = row["answers"]
        return found


COUNTRY = r"(?:capital of|continent is|used in|language of) (.+)\?$"
ELEMENT = r"(?:symbol for|atomic number of) (.+)\?$"
PERSON = r"The (country of citizenship|native language|religion) of (.+) is$"
#: Words of a sentence about each of these.
PERSONAL = {"country of citizenship": "citizen of", "native language": "native language", "religion": "religion"}
RELATIONS = ("capital", "currency", "continent", "language")
COUNTRY_EXAMPLE = (
    "Facts about Japan\nCapital: Tokyo\nCurrency: Japanese yen\nContinent: Asia\nLanguage: Japanese\n\n"
    "Facts about Kenya\nCapital: Nairobi\nCurrency: Kenyan shilling\nContinent: Africa\nLanguage: Swahili\n\n"
)
PROSE_EXAMPLE = (
    "About Japan. The capital of Japan is Tokyo. The currency that people use there is the Japanese yen. It lies on "
    "the continent of Asia. The official language is Japanese.\n\n"
)


PERSON_EXAMPLE = (
    "About Marie Curie. She was a citizen of France. Her native language was Polish. Her religion was Catholicism in "
    "her youth. She is known for her work on radioactivity.\n\n"
)


def _claims(facts: Mapping[str, Sequence[str]]) -> tuple[ExpectedClaim, ...]:
    return tuple(ExpectedClaim(about, tuple(answers)) for about, answers in facts.items())


def country_lists(tables: FactTables) -> Iterator[SpanTask]:
    """Yield questions for four facts of a country."""
    for name, facts in tables.facts("countries", COUNTRY).items():
        if all(each in facts for each in RELATIONS):
            header = f"Facts about {name}\n"
            lines = "".join(f"\n{each.capitalize()}: " for each in RELATIONS)
            chat = f"Give four facts about {name}, in this form and nothing else:{lines}"
            row = SpanRow(chat, _claims({each: facts[each] for each in RELATIONS}), equations=False)
            yield SpanTask("lists: countries", f"countries/{name}", header, chat, COUNTRY_EXAMPLE, row)


def country_prose(tables: FactTables) -> Iterator[SpanTask]:
    """Yield questions for a paragraph about a country; not those of the lists."""
    for name, facts in reversed(tables.facts("countries", COUNTRY).items()):
        if all(each in facts for each in RELATIONS):
            chat = (
                f"Write a short paragraph about {name}: a sentence about its capital, one about its currency, one "
                "about the continent where it is, and one about its official language."
            )
            row = SpanRow(chat, _claims({each: facts[each] for each in RELATIONS}), equations=False)
            yield SpanTask("prose: countries", f"prose/{name}", f"About {name}.", chat, PROSE_EXAMPLE, row, "\n")


def element_prose(tables: FactTables) -> Iterator[SpanTask]:
    """Yield questions for a paragraph about a chemical element."""
    example = "About gold. The chemical symbol of gold is Au. Its atomic number is 79.\n\n"
    for name, facts in tables.facts("elements", ELEMENT).items():
        if "symbol" in facts and "number" in facts:
            chat = (
                f"Write a short paragraph about the element {name}: a sentence with its chemical symbol, one with its "
                "atomic number, and one about what it is used for."
            )
            row = SpanRow(chat, _claims({"symbol": facts["symbol"], "atomic number": facts["number"]}), equations=False)
            yield SpanTask("prose: elements", f"prose/{name}", f"About {name}.", chat, example, row, "\n")


def biographies(tables: FactTables) -> Iterator[SpanTask]:
    """Yield questions for a short biography of a person, those first of whom more is known."""
    people: dict[str, dict[str, list[str]]] = {}
    for row in tables.rows("qa_wikidata"):
        if match := re.match(PERSON, row["question"]):
            people.setdefault(match.group(2), {})[PERSONAL[match.group(1)]] = row["answers"]
    for name, facts in sorted(people.items(), key=lambda each: -len(each[1])):
        chat = (
            f"Write a short biography of {name}: a sentence that says of which country this person was a citizen, one "
            "with the native language, one with the religion, and one about what this person is known for."
        )
        row = SpanRow(chat, _claims(facts), equations=False)
        yield SpanTask("biographies", f"people/{name}", f"About {name}.", chat, PERSON_EXAMPLE, row, "\n")


def _grouped(
    dataset: str, what: str, pairs: Iterable[tuple[str, list[str]]], example: str, *, size: int = 5
) -> Iterator[SpanTask]:
    """Yield questions for one fact of each of several subjects, a line each."""
    found = list(pairs)
    for start in range(0, len(found) - size + 1, size):
        part = dict(found[start : start + size])
        names = ", ".join(part)
        header = f"{what}: {names}\n"
        lines = "\n".join(f"{name}: " for name in part)
        chat = f"{what}: {names}. Answer in this form and nothing else:\n{lines}"
        row = SpanRow(chat, _claims(part), equations=False)
        yield SpanTask(dataset, f"{what}/{start}", header, chat, f"{what}: {example}\n\n", row)


def elements(tables: FactTables) -> Iterator[SpanTask]:
    """Yield questions for symbols and for atomic numbers of elements."""
    facts = tables.facts("elements", ELEMENT)
    symbols = _grouped(
        "lists: elements",
        "Chemical symbols of elements",
        ((name, each["symbol"]) for name, each in facts.items() if "symbol" in each),
        "gold, tin, lead\ngold: Au\ntin: Sn\nlead: Pb",
    )
    numbers = _grouped(
        "lists: elements",
        "Atomic numbers of elements",
        ((name, each["number"]) for name, each in facts.items() if "number" in each),
        "gold, tin, lead\ngold: 79\ntin: 50\nlead: 82",
    )
    return _in_turn([symbols, numbers])


def cities(tables: FactTables) -> Iterator[SpanTask]:
    """Yield questions for the countries of cities."""
    rows = (
        (row["question"].removesuffix("?").partition("the city of ")[2], row["answers"])
        for row in tables.rows("cities")
    )
    return _grouped(
        "lists: cities",
        "Countries of cities",
        rows,
        "Paris, Tokyo, Nairobi\nParis: France\nTokyo: Japan\nNairobi: Kenya",
    )


def sums(tables: FactTables) -> Iterator[SpanTask]:
    """Yield questions for the results of five sums."""
    found = [row["question"].removeprefix("What is ").removesuffix("?") for row in tables.rows("arithmetic")]
    example = "Sums: 12 + 30, 5 * 7, 20 - 6\n12 + 30 = 42\n5 * 7 = 35\n20 - 6 = 14\n\n"
    for start in range(0, len(found) - 4, 5):
        part = found[start : start + 5]
        lines = "\n".join(f"{each} = " for each in part)
        chat = f"Compute these, in this form and nothing else:\n{lines}"
        yield SpanTask("sums", f"sums/{start}", f"Sums: {', '.join(part)}\n", chat, example, SpanRow(chat))


def word_problems(tables: FactTables) -> Iterator[SpanTask]:
    """Yield word problems, whose steps are written as equations."""
    for row in tables.rows("multiarith"):
        how = "Solve it step by step. Write each step as an equation on a line of its own, like 3 + 4 = 7."
        chat = f"{row['question']}\n{how}"
        header = f"Problem: {row['question']}\nSteps:\n"
        example = (
            "Problem: Ann has 3 bags of 4 apples and eats 2. How many are left?\nSteps:\n3 * 4 = 12\n12 - 2 = 10\n\n"
        )
        yield SpanTask("word problems", row["id"], header, chat, example, SpanRow(chat))


def halueval(tables: FactTables, *, passage: bool) -> Iterator[SpanTask]:
    """Yield given answers to one question in turn: the right one and an invented one."""
    dataset = "given: HaluEval with its passage" if passage else "given: HaluEval"
    for row in tables.rows("halueval_qa"):
        wrong = next(each for at, each in enumerate(row["choices"]) if at != row["answer_index"])
        asked = f"{row['context']}\n\n{row['question']}" if passage else row["question"]
        for response, is_wrong in ((row["choices"][row["answer_index"]], False), (wrong, True)):
            mark = MarkedPlace(0, len(response), is_wrong)
            labels = SpanRow(asked, equations=False, response=response, marks=(mark,))
            key = f"{dataset}/{row['id']}/{is_wrong}"
            yield SpanTask(dataset, key, f"Question: {asked}\nAnswer:", asked, "", labels)


def _in_turn(sets: Iterable[Iterator[SpanTask]]) -> Iterator[SpanTask]:
    return (each for each in chain.from_iterable(zip_longest(*sets)) if each is not None)


def tasks(folder: Path, *, limit: int, only: Sequence[str]) -> list[SpanTask]:
    """Return the questions of all sets in turn, up to the limit of each set."""
    tables = FactTables(folder)
    sets = [
        *(country_lists(tables), elements(tables), cities(tables), sums(tables), word_problems(tables)),
        *(country_prose(tables), element_prose(tables), biographies(tables)),
        *(halueval(tables, passage=passage) for passage in (False, True)),
    ]
    parts = [[task for task, _ in zip(each, range(limit), strict=False)] for each in sets]
    kept = [part for part in parts if not only or any(part[0].dataset.startswith(name) for name in only)]
    return list(_in_turn(iter(part) for part in kept))


# -- asking ------------------------------------------------------------------------------------


def ask(engine: TokenizingEngine, wanted: Sequence[SpanTask], kept: Path, *, completion: bool, max_tokens: int) -> None:
    """Ask what is not there yet, and keep it."""
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    known = {json.loads(line)["key"] for line in lines}
    rest = [task for task in wanted if task.key not in known]
    with kept.open("a", encoding="utf-8") as file:
        for start in range(0, len(rest), CHUNK):
            part = rest[start : start + CHUNK]
            found = in_order(
                lambda task, _: answered(engine, task, completion=completion, max_tokens=max_tokens), part, at_once=8
            )
            file.writelines(json.dumps(each) + "\n" for each in found)
            file.flush()
            print(f"{start + len(part)} of {len(rest)}", flush=True)


def answered(engine: TokenizingEngine, task: SpanTask, *, completion: bool, max_tokens: int) -> dict[str, Any]:
    """Return one answer with its labelled lines."""
    prompt = task.prompt(completion=completion)
    limits = Limits(max_tokens=max_tokens, stop=(task.stop,) if completion else ())
    prompt = Prompt(prompt.messages, prompt.text, plain=prompt.plain, top_logprobs=TOP)
    generation = engine.generate(prompt, limits=limits, completion=task.row.response)
    question = task.header if completion else task.chat
    about = {"key": task.key, "set": task.dataset, "question": question, "text": generation.text}
    about |= {"model": engine.model.name, "quantization": engine.model.quantization}
    return {**about, "lines": list(labelled_lines(engine, task.row, question, generation))}


def labelled_lines(
    engine: TokenizingEngine, row: SpanRow, question: str, generation: Generation
) -> Iterator[dict[str, Any]]:
    """Yield what is known of each line that has a label."""
    text, offsets = generation.text, generation.offsets
    assert offsets is not None
    spans = AnswerSpans(generation, offsets, question)
    labels = row.labels(text, spans.places)
    for place, claim, columns, wrong in zip(spans.places, spans.claims, spans.columns, labels, strict=True):
        if wrong is not None:
            line, own = tokens_of(offsets, [place]), tokens_of(offsets, claim or [place])
            yield {
                "text": text[slice(*place)],
                "claim": [text[slice(*each)] for each in claim],
                "wrong": wrong,
                "columns": columns.round(6).tolist(),
                "mean": round(float(generation.logprobs[line].mean()), 6),
                "least": round(float(generation.logprobs[own].min()), 6),
                "ccp": round(sum(claim_conditioned(engine, generation, int(at)) for at in np.flatnonzero(own)), 6),
            }


def tokens_of(offsets: NDArray[np.int32], places: Sequence[Extent]) -> NDArray[np.bool_]:
    """Return which tokens write characters of some places, shape (T,)."""
    first, last = offsets.T
    pairs = [(first < end) & (last > start) & (last > first) for start, end in places]
    return np.logical_or.reduce(pairs)


def claim_conditioned(engine: TokenizingEngine, generation: Generation, at: int) -> float:
    """Return the logarithm of the claim-conditioned probability of one token."""
    assert generation.top is not None
    before = generation.token_ids[:at]
    chosen = _plain(engine.alternative_text(before, generation.token_ids[at]))
    same, other = math.exp(float(generation.logprobs[at])), 0.0
    for token, logprob in generation.top[at]:
        if token == generation.token_ids[at]:
            continue
        text = _plain(engine.alternative_text(before, token))
        if text and chosen and (text.startswith(chosen) or chosen.startswith(text)):
            same += math.exp(logprob)
        elif any(letter.isalnum() for letter in text) and text not in _FUNCTION_WORDS:
            other += math.exp(logprob)
    return math.log(same / (same + other)) if same else -50.0


def _plain(text: str) -> str:
    return text.strip().casefold()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the question sets")
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--limit", type=int, default=30, help="answers of each set")
    parser.add_argument("--only", action="append", default=[], help="sets that begin so; repeatable")
    parser.add_argument("--completion", action="store_true", help="ask a model with a chat template by a text, too")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    wanted = tasks(asked.data, limit=asked.limit, only=asked.only)
    with load_engine(asked.model, threads=asked.threads, trial_load=False) as engine:
        assert isinstance(engine, TokenizingEngine)
        completion = asked.completion or not engine.chat_template
        ask(engine, wanted, asked.kept, completion=completion, max_tokens=asked.max_tokens)


if __name__ == "__main__":
    main()

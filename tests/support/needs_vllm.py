"""Skips the test module that imports it where vLLM is not installed; to be imported before whatever imports vLLM."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from guard.engines.vllm.versions import installed_version
from guard.errors import MissingExtraError

try:
    installed_version()
except (MissingExtraError, PackageNotFoundError):
    pytest.skip("vLLM is not installed", allow_module_level=True)

"""Private names of other packages that guard uses are listed, each with a reason."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Uses of private names of other packages, with the reason why no public name would do. Those of langchain-core,
#: langchain, langgraph and langsmith are in one module, which has a contract of its own.
PRIVATE_NAMES = {
    "guard/engines/llama_context.py: llama_cpp.llama_batch._fields_": "ctypes names the fields of a struct so",
    "guard/engines/llama_log.py: llama_cpp._logger": "the callback that llama-cpp-python sets has no public name",
    "guard/engines/llama_tap.py: llama_cpp._ctypes_extensions": "finds the library beside the package's own",
    "guard/engines/passes.py: _is_stateful": "an attribute of transformers' models; one without it counts as stateless",
    "guard/engines/transformers.py: _name_or_path": "a configuration's source, for the model's display name only",
    "guard/engines/vllm/v0_32_worker.py: EagleModelMixin._maybe_add_hidden_state": "where decoders hand layers over",
    "guard/serve/telemetry.py: opentelemetry._logs": "its logs API, private until its specification is stable",
}
UPSTREAM = "guard/langchain/upstream_internals.py"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_foreign(module: str) -> bool:
    top = module.split(".")[0]
    return top not in sys.stdlib_module_names and top not in ("guard", "__future__")


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Every name that a module imports from another package, with what it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name.split(".")[0], alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def private_uses(tree: ast.Module) -> Iterator[str]:
    known = {name: origin for name, origin in imported(tree) if is_foreign(origin)}
    for origin in known.values():
        parts = origin.split(".")
        private = next((number for number, part in enumerate(parts) if is_private(part)), None)
        if private is not None:
            yield ".".join(parts[: private + 1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and root(node) in known:
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and ast.unparse(node.args[0]) != "self":
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                yield str(name.value)


def root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def test_private_names_of_others_are_listed_with_a_reason() -> None:
    found = {
        f"{file}: {name}"
        for path in (ROOT / "guard").rglob("*.py")
        if (file := path.relative_to(ROOT).as_posix()) != UPSTREAM
        for name in private_uses(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == PRIVATE_NAMES.keys()

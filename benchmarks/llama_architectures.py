"""Which architectures of llama.cpp are read rightly, found out with tiny models; writes the documents' table.

    python benchmarks/llama_architectures.py            # all, about ten minutes; writes the JSON and the document
    python benchmarks/llama_architectures.py bert plm   # these, and the rest as it is in the JSON
    python benchmarks/llama_architectures.py --table    # the document only, from the JSON

The list of architectures is the JSON's; add new ones there. Each model is made in a process of its own, since
llama.cpp ends it where hyperparameters do not fit together.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "results" / "architectures-llama.json"
DOCUMENT = ROOT / "docs" / "reference" / "architectures.md"
BEGIN, END = "<!-- llama.cpp: begin -->", "<!-- llama.cpp: end -->"
NOT_MADE = "no tiny model of it could be made"
BY_GRAPH = "by the graph"
#: Why no tiny model can be made of some, beside what llama.cpp says.
REASONS = {
    "clip": "not a language model: a name for the quantizer's use on vision towers",
    "gptj": "llama.cpp knows the name and has no graph for it",
    "eagle3": "a draft model, which reads its target model's activations",
    "dflash": "a draft model, which reads its target model's activations",
    "gemma4-assistant": "a draft model, which reads its target model's activations",
    "plm": "llama.cpp fails an assertion when it builds the graph (`a->ne[0] == b->ne[0]`): by its source, a layer's "
    "values do not have the width of its cache's rows. Its own tests leave it out",
    "wavtokenizer-dec": "not a language model: it makes sound of tokens",
}


def try_model(model: str) -> dict[str, str]:
    """The verdict on a model such as ``llama dense``."""
    program = ROOT / "tests" / "support" / "tiny_architectures.py"
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program), model]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"verdict": "unknown", "why": NOT_MADE}
    if ended.returncode != 0 or not ended.stdout.strip():
        return {"verdict": "unknown", "why": f"{NOT_MADE}: {last_words(ended.stderr)}"}
    found = json.loads(ended.stdout.splitlines()[-1])
    return {"verdict": found["verdict"], "why": shortened(found["why"])}


def last_words(log: str) -> str:
    """What llama.cpp said before it ended the process, without paths and addresses."""
    lines = [line.strip() for line in log.splitlines() if "ASSERT" in line or "rror" in line]
    return re.sub(r"\S*/", "", lines[-1])[:100] if lines else "it ends the process"


def shortened(why: str) -> str:
    """A reason without what belongs to one machine or one tiny model."""
    if "could not load" in why or "made no context" in why:
        reason = re.search(r"(?:llama_model_load\w*: |error loading model: )(.{5,100})", why)
        return f"{NOT_MADE}: {reason[1].strip()}" if reason else NOT_MADE
    return re.sub(r"^(Of the model's \d+ layers, layer|Layer) \d+", "a layer", why.split(": ")[0]).rstrip(".")


def verdicts(found: dict[str, dict[str, str]]) -> dict[str, tuple[str, str]]:
    """One verdict for each architecture; what could not be made in one form is judged by the other."""
    forms: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for model, each in found.items():
        name, form = model.split()
        forms[name][form] = each
    return {name: _joined(each) for name, each in forms.items()}


def _joined(forms: dict[str, dict[str, str]]) -> tuple[str, str]:
    made = {form: each for form, each in forms.items() if not each["why"].startswith(NOT_MADE)} or forms
    kinds = {each["verdict"] for each in made.values()}
    if len(kinds) == 1:
        return kinds.pop(), next(iter(made.values()))["why"]
    return "mixed", "; ".join(f"{form} {each['verdict']}" for form, each in made.items())


def section(table: dict[str, Any]) -> str:
    """The document's part, in Markdown."""
    lists: dict[str, list[str]] = defaultdict(list)
    graphs: list[str] = []
    for name, (kind, why) in sorted(verdicts(table["architectures"]).items()):
        graphs += [f"`{name}`"] if why == BY_GRAPH else []
        lists[kind].append(f"`{name}`" if kind == "right" else f"| `{name}` | {kind} | {REASONS.get(name, why)} |")
    others = [row for kind in ("mixed", "refused", "unknown") for row in lists[kind]]
    rows = "\n".join(["| architecture | verdict | why |", "| --- | --- | --- |", *others])
    made = f"llama-cpp-python {table['llama_cpp_python']}"
    right = f"With {made}. Right ({len(lists['right'])}): {', '.join(lists['right'])}."
    return f"{right}\n\nOf these, by the graph alone ({len(graphs)}): {', '.join(graphs)}.\n\n{rows}"


def main() -> None:
    """Try all, unless only the document is wanted."""
    table = json.loads(TABLE.read_text())
    if "--table" not in sys.argv[1:]:
        table["llama_cpp_python"] = version("llama-cpp-python")
        for model in table["architectures"]:
            if not sys.argv[1:] or model.split()[0] in sys.argv[1:]:
                table["architectures"][model] = try_model(model)
                print(model, json.dumps(table["architectures"][model]), flush=True)
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{section(table)}\n\n{END}{after}")


if __name__ == "__main__":
    main()

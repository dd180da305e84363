"""Options of the commands that load a model: those of an engine's ``load``, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, get_args, get_type_hints

import typer

EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="llama.cpp, transformers, vllm, or openai (a served model); by default chosen by the model.",
    ),
]

#: Options by their names in an engine's ``load``, in the order of ``--help``.
OPTIONS: Mapping[str, Any] = {
    "dtype": Annotated[
        str | None,
        typer.Option(
            "--dtype", help="transformers: weights as float32 (default), bfloat16, float16 or int4; vllm: default auto."
        ),
    ],
    "device": Annotated[
        str | None,
        typer.Option("--device", help="transformers only: device, such as cuda:0; by default CUDA if available."),
    ],
    "threads": Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            help="CPU threads; by default one per core, within a container's limit and OMP_NUM_THREADS.",
        ),
    ],
    "gpu_layers": Annotated[
        int | None,
        typer.Option(
            "--gpu-layers",
            min=-1,
            help="llama.cpp only: number of layers on the GPU; -1 (default) for all, 0 for none.",
        ),
    ],
    "flash_attention": Annotated[
        bool | None,
        typer.Option(
            "--flash-attention/--no-flash-attention",
            help="llama.cpp only: fused attention; by default if model and device support it.",
        ),
    ],
    "type_k": Annotated[
        str | None,
        typer.Option(
            "--type-k", metavar="TYPE", help="llama.cpp only: type of cached keys, such as q8_0; by default f16."
        ),
    ],
    "type_v": Annotated[
        str | None,
        typer.Option("--type-v", metavar="TYPE", help="llama.cpp only: type of cached values, as for --type-k."),
    ],
    "context_tokens": Annotated[
        int | None,
        typer.Option(
            "--context",
            min=1,
            help="Token limit of prompt and answer together; by default 4096, or less if the model has less.",
        ),
    ],
    "slots": Annotated[
        int | None,
        typer.Option(
            "--slots",
            min=1,
            help="Number of concurrent requests and of cached conversations (llama.cpp: 16, vllm: 32).",
        ),
    ],
    "cache_tokens": Annotated[
        int | None,
        typer.Option(
            "--cache-tokens", min=1, help="Token capacity that all slots share; by default that of --context."
        ),
    ],
    "deterministic": Annotated[
        bool | None,
        typer.Option("--deterministic", help="Run one request at a time, from an empty cache: bit-identical scores."),
    ],
    "base_url": Annotated[
        str | None,
        typer.Option(
            "--base-url", metavar="URL", help="Served models only: URL of the server; or use --model URL#NAME."
        ),
    ],
    "api_key_env": Annotated[
        str | None,
        typer.Option("--api-key-env", metavar="NAME", help="Served models only: environment variable with the key."),
    ],
    "api_key_file": Annotated[
        str | None,
        typer.Option("--api-key-file", metavar="FILE", help="Served models only: file with the key."),
    ],
    "top_logprobs": Annotated[
        int | None,
        typer.Option("--top-logprobs", min=2, help="Served models only: likeliest tokens to read; by default 20."),
    ],
    "trial_load": Annotated[
        bool | None,
        typer.Option(
            "--trial-load/--no-trial-load",
            help="llama.cpp only: load an unknown file in a child process first (default; never for smollm2).",
        ),
    ],
}

#: Options that served models have; a scorer cannot move to one, which shows no layers.
_SERVED = ("base_url", "api_key_env", "api_key_file", "top_logprobs")


def _of_the_new_model(option: Any) -> Any:
    """Return an option as it is given for the new model alone: ``--dtype`` as ``--to-dtype``."""
    kind, declared = get_args(option)
    names = declared.default  # in an annotation, the place of the default has the names
    what = f"As {names.partition('/')[0]}, for the new model alone."
    to = names.replace("--", "--to-")
    return Annotated[kind, typer.Option(to, metavar=declared.metavar, min=declared.min, help=what)]


#: Options for the new model of ``guard rebind``, by the names of its parameters.
TO_OPTIONS: Mapping[str, Any] = {
    f"to_{name}": _of_the_new_model(option) for name, option in OPTIONS.items() if name not in _SERVED
}

#: The given options; see `loads_a_model`.
EngineOptions = Mapping[str, Any] | None

_CommandFunction = Callable[..., None]
#: What stands for a command's parameter: options by the names of their parameters, and the prefix of these names.
_Groups = Mapping[str, tuple[Mapping[str, Any], str]]


def loads_a_model(*, without: Collection[str] = ()) -> Callable[[_CommandFunction], _CommandFunction]:
    """Give a command the options of an engine's ``load``.

    Args:
        without: names of options that the command does not take.

    Returns:
        A decorator. The options replace the command's parameter ``engine_options``, which gets the given ones; the
        others keep the engine's defaults. A command that loads a second model has ``to_engine_options`` for it.
    """
    own = {name: option for name, option in OPTIONS.items() if name not in without}

    def decorate(command: _CommandFunction) -> _CommandFunction:
        groups: _Groups = {"engine_options": (own, ""), "to_engine_options": (TO_OPTIONS, "to_")}
        groups = {name: groups[name] for name in inspect.signature(command).parameters if name in groups}

        def run(**arguments: Any) -> None:
            given = {name: _taken(arguments, *group) for name, group in groups.items()}
            command(**arguments, **given)

        parameters = [*_parameters(command, groups)]
        run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _taken(arguments: dict[str, Any], options: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Take the options of a group out of a command's arguments, and return the given ones as an engine names them."""
    taken = {name.removeprefix(prefix): arguments.pop(name) for name in options}
    return {name: value for name, value in taken.items() if value is not None}


def _parameters(command: _CommandFunction, groups: _Groups) -> Iterator[inspect.Parameter]:
    """Yield a command's parameters, with options in place of those that stand for a group."""
    hints = get_type_hints(command, include_extras=True)
    for each in inspect.signature(command).parameters.values():
        if each.name in groups:
            for name, option in groups[each.name][0].items():
                yield inspect.Parameter(name, each.KEYWORD_ONLY, default=None, annotation=option)
        else:
            yield each.replace(kind=each.KEYWORD_ONLY, annotation=hints[each.name])

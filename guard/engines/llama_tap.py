"""Reading a llama.cpp graph's nodes while it is evaluated.

llama.cpp's scheduler asks a callback for each node whether it is wanted, and stops at those that
are, with the data ready. It asks some 850 times a token, with every thread waiting: in Python that takes a tenth of a
small model's token. llama.cpp evaluates the same graph again as long as it can, so the nodes that are not wanted are
remembered by their addresses, and a lookup in a `dict` answers for them without any Python code.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
from llama_cpp._ctypes_extensions import load_shared_library

from guard.engines.callback_errors import KeptError
from guard.errors import CaptureError
from guard.records import Floats


def _load_ggml() -> Any:
    """Return the library that owns the tensors; its three accessors need no knowledge of struct layouts."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = load_shared_library("ggml-base", folder)
    ggml.ggml_get_name.argtypes, ggml.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    ggml.ggml_nelements.argtypes, ggml.ggml_nelements.restype = [ctypes.c_void_p], ctypes.c_int64
    ggml.ggml_nbytes.argtypes, ggml.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    ggml.ggml_backend_tensor_get.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
    ]
    ggml.ggml_backend_tensor_get.restype = None
    return ggml


_ggml = _load_ggml()


class RowPlace(NamedTuple):
    """Where a token's row is in a pass.

    Attributes:
        token: its position in the batch, and so the row of nodes that have one for each token.
        output: its position among the tokens whose logits are wanted, which is the row in the last layer: llama.cpp
            drops the others on its way there.
    """

    token: int
    output: int


class _Unwanted(dict[int, bool]):
    """Addresses of nodes that are not wanted, each with False; `on_node` answers for any other."""

    def __init__(self, on_node: Callable[[int], bool]) -> None:
        super().__init__()
        self._on_node = on_node

    def __missing__(self, tensor: int) -> bool:
        return self._on_node(tensor)


#: The scheduler's callback, without the two arguments behind the node: C ignores what a function does not take, and
#: with a single one a method of `dict` can be called from C.
_Callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)


class Tap:
    """The evaluation callback: copies some rows of each wanted node, or lists all node names."""

    def __init__(self, width: int) -> None:
        self._row_bytes = 4 * width
        self._width = width
        #: Wanted nodes by name, and the layer of each.
        self._layers: dict[bytes, int] = {}
        #: Rows to copy from the next evaluation, and how many tokens and outputs it has.
        self._places: Sequence[RowPlace] = ()
        self._tokens = self._outputs = 0
        #: Nodes read in this evaluation. Of two with the same name the first is read.
        self._seen: set[bytes] = set()
        self._names: list[str] | None = None
        self._failure: str | None = None
        #: What a signal handler raised while llama.cpp was evaluating.
        self._kept = KeptError()
        self._buffer = np.empty((0, 0, width), np.float32)
        self._address = 0
        #: Nodes of the graph that was evaluated last: names of the layers, and all others.
        self._layer_nodes: dict[int, bytes] = {}
        self._other_nodes: dict[int, bool] = {}
        #: Counts the evaluations of a graph that is evaluated again, where llama.cpp counts them.
        self.repeats: Callable[[], int] | None = None
        self._repeats = 0
        #: Whether nothing was asked yet in this evaluation, and the node whose data is ready next.
        self._first, self._stopped = True, 0
        self._answers = _Unwanted(self._on_node)
        self._called = _Callback(self._answers.__getitem__)
        #: For llama_context_params.cb_eval; must live as long as the context.
        self.callback = ctypes.cast(self._called, llama_cpp.ggml_backend_sched_eval_callback)

    def want(self, nodes: Sequence[str], rows: int) -> None:
        """Choose the nodes to copy, in the order of the layers, and how many rows of each at most."""
        self._layers = {name.encode(): layer for layer, name in enumerate(nodes)}
        self._buffer = np.empty((rows, len(nodes), self._width), np.float32)
        self._address = self._buffer.ctypes.data
        self._forget_graph()

    @contextmanager
    def listing(self) -> Iterator[Sequence[str]]:
        """Collect the names of all nodes that are evaluated meanwhile, in the graph's order; some occur twice."""
        self._names = []
        self._forget_graph()
        try:
            yield self._names
        finally:
            self._names = None

    def start(self, places: Sequence[RowPlace], tokens: int, outputs: int) -> None:
        """Copy these rows from the next evaluation, which has this many tokens and outputs; with none, nothing."""
        self._places, self._tokens, self._outputs, self._failure = places, tokens, outputs, None
        self._seen.clear()
        self._answers.clear()
        self._first, self._stopped = True, 0

    def read(self, row: int) -> Floats:
        """Return one row's activations in the last evaluation, shape (L, D), overwritten by the next."""
        if self._failure or len(self._seen) != len(self._layers):
            raise CaptureError(
                "The layers' activations could not be read",
                why=self._failure or f"{len(self._seen)} of {len(self._layers)} layers were seen",
            )
        activations: Floats = self._buffer[row]
        return activations

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Surround each evaluation: what the callback, or a signal handler in it, raises is raised on leaving."""
        with self._kept.raised_after():
            yield

    def _on_node(self, tensor: int) -> bool:
        """Called by llama.cpp, which cannot be raised into; False for data that is ready would stop the graph."""
        ready, self._stopped = tensor == self._stopped, 0
        try:
            if ready:
                self._copy(tensor)
            elif self._asked(tensor):
                self._stopped = tensor
                return True
        except CaptureError as error:
            self._failure = str(error)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C, or what another signal's handler raises
            self._kept.keep(error)
        return ready

    def _asked(self, tensor: int) -> bool:
        """Return whether to stop at a node; one that is none of the layers is not asked about again."""
        if self._first:
            self._first = False
            self._recall()
            if tensor in self._answers:
                return False
        name = self._layer_nodes.get(tensor)
        if name is None:
            name = _ggml.ggml_get_name(tensor)
            if not self._wanted(name):
                self._answers[tensor] = self._other_nodes[tensor] = False
                return False
            self._layer_nodes[tensor] = name
        return bool(self._places) and name not in self._seen

    def _recall(self) -> None:
        """Take over what is known of the graph, if it is the last one again."""
        repeats = self.repeats() if self.repeats is not None else 0
        if repeats != self._repeats + 1:
            self._forget_graph()
        self._repeats = repeats
        self._answers.update(self._other_nodes)
        if not self._places:
            self._answers.update(dict.fromkeys(self._layer_nodes, False))

    def _forget_graph(self) -> None:
        self._layer_nodes.clear()
        self._other_nodes.clear()

    def _wanted(self, name: bytes) -> bool:
        if self._names is not None:
            self._names.append(name.decode(errors="replace"))
            return False
        return name in self._layers and name not in self._seen

    def _copy(self, tensor: int) -> None:
        name, size = _ggml.ggml_get_name(tensor), _ggml.ggml_nbytes(tensor)
        rows, rest = divmod(size, self._row_bytes)
        if rest or size != 4 * _ggml.ggml_nelements(tensor) or rows not in (self._tokens, self._outputs):
            raise CaptureError(f"Node {name.decode(errors='replace')} is not a float32 tensor of width {self._width}")
        address = self._address + self._layers[name] * self._row_bytes
        for number, place in enumerate(self._places):
            row = place.token if rows == self._tokens else place.output
            to = address + number * len(self._layers) * self._row_bytes
            _ggml.ggml_backend_tensor_get(tensor, to, row * self._row_bytes, self._row_bytes)
        self._seen.add(name)

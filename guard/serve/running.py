"""Runs a server until a signal stops it. Running requests get time to finish."""

from __future__ import annotations

import logging
import resource
import socket
import sys
from typing import TYPE_CHECKING, Any

from guard.errors import InputError, missing_extra
from guard.serve.application import create_application
from guard.serve.config import ServeConfig
from guard.serve.decision_lines import log as decisions
from guard.serve.loading import loaded_server
from guard.serve.settings import ServeSettings

if TYPE_CHECKING:
    import uvicorn

#: Seconds for which an idle connection is kept: longer than clients and proxies use one (httpx 5 s, nginx and AWS's
#: load balancer 60 s). Where both give it up at the same time, a request may meet the end of its connection.
IDLE_S = 75


def run_server(config: ServeConfig, *, announce: bool = True) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        config: the configuration.
        announce: print the address once the server listens.

    Raises:
        InputError: the address is not available.
        GuardError: as for `guard.serve.loading.loaded_server`.
    """
    log_decisions()
    with loaded_server(config) as server, listen_on(config.listen.host, config.listen.port) as listening:
        if announce:
            print(f"guard serve listens on {listening_url(listening)}", flush=True)
        http_server(create_application(server), server.settings).run([listening])


def http_server(
    application: Any, settings: ServeSettings, *, log_level: str = "warning", most_waiting: int | None = None
) -> uvicorn.Server:
    """Return what serves an application over HTTP.

    Args:
        application: ASGI.
        settings: for its time limits.
        log_level: of uvicorn's own lines.
        most_waiting: connections that may wait for their clients; None for half the files that the process may open.

    Raises:
        MissingExtraError: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise missing_extra("uvicorn", "serve") from error
    from guard.serve.slow_clients import patient_for

    config = uvicorn.Config(
        application,
        http=patient_for(
            settings.body_seconds, most_waiting=_half_of_the_files() if most_waiting is None else most_waiting
        ),
        ws="none",
        proxy_headers=False,  # whoever connects from this machine could say that he is somebody else
        access_log=False,  # it would have no decision ids
        log_level=log_level,
        server_header=False,
        h11_max_incomplete_event_size=65_536,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )
    return uvicorn.Server(config)


def _half_of_the_files() -> int:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft // 2)


def log_decisions() -> None:
    """Write the lines of decisions to standard error without a prefix."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    decisions.addHandler(handler)
    decisions.setLevel(logging.INFO)
    decisions.propagate = False


def listen_on(host: str, port: int) -> socket.socket:
    """Return a listening socket, so that clients can connect once they know the address.

    Raises:
        InputError: the address is not available.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio disables Nagle's algorithm only for sockets with an explicit protocol.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host}:{port}", why=error.strerror or str(error), fix="Choose another --host or --port"
        ) from error
    return listening


def listening_url(listening: socket.socket) -> str:
    """Return the address of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"

"""``guard webhooks``: endpoints for notifications about the review queue, and the worker that sends them."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from guard.checked import checked_choice
from guard.cli.output import JsonOption, StoreOption, console, plain_table, print_json, user_functions
from guard.cli.review_options import open_store
from guard.cli.review_tables import when
from guard.cli.terminal import say

if TYPE_CHECKING:
    from rich.table import Table

    from guard.review.endpoints import Endpoint, EndpointKind
    from guard.review.outbox import Notification

app = typer.Typer(
    help="Notify other programs and people of events in the review queue.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

EndpointArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the endpoint.")]


@app.command()
def add(
    name: EndpointArgument,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="URL, mail address, or description of a function.")],
    *,
    kind: Annotated[str, typer.Option(metavar="KIND", help="Kind: webhook, slack, email or python.")] = "webhook",
    event: Annotated[
        list[str] | None, typer.Option(metavar="EVENT", help="Only this event, such as case.decided; repeatable.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Also send question, answers and notes.")] = False,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Allow an address in a private network, such as localhost.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add an endpoint. For a webhook, print its secret, once; the receiver verifies signatures with it."""
    from guard.review.endpoints import Endpoints

    with open_store(store) as reviews:
        secret = Endpoints(reviews).add(
            name,
            target,
            kind=cast("EndpointKind", kind),
            events=event or (),
            with_text=text,
            allow_private=allow_private,
        )
    if as_json:
        print_json({"name": name, "secret": secret})
        return
    say(f"{name} is notified from now on.")
    if secret is not None:
        say(f"Its secret, shown only now: {secret}")


@app.command("list")
def list_endpoints(
    *,
    dead: Annotated[bool, typer.Option("--dead", help="List dead letters instead.")] = False,
    messages: Annotated[bool, typer.Option("--messages", help="List the newest messages instead.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List endpoints, or messages."""
    from guard.review.endpoints import Endpoints

    with open_store(store) as reviews:
        endpoints = Endpoints(reviews)
        found = endpoints.messages(dead=dead) if dead or messages else None
        listed = endpoints.all() if found is None else []
    if as_json:
        print_json([asdict(each) for each in (listed if found is None else found)])
    elif found is None:
        console().print(_endpoints_table(listed) if listed else "No endpoints.")
    else:
        console().print(_messages_table(found) if found else "No messages.")


@app.command()
def rotate(name: EndpointArgument, *, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Replace the secret of a webhook. Until the next rotation, messages are also signed with the previous one."""
    from guard.review.endpoints import Endpoints

    with open_store(store) as reviews:
        secret = Endpoints(reviews).rotate(name)
    if as_json:
        print_json({"name": name, "secret": secret})
    else:
        say(f"Its new secret, shown only now: {secret}")


@app.command()
def off(name: EndpointArgument, *, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Disable an endpoint. Its pending messages wait."""
    _switch(name, store, as_json, on=False)


@app.command()
def on(name: EndpointArgument, *, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Enable an endpoint, for example one that a 410 response has disabled."""
    _switch(name, store, as_json, on=True)


@app.command()
def replay(
    messages: Annotated[
        list[str] | None, typer.Argument(metavar="[MESSAGE]...", help="Ids of messages; by default all dead letters.")
    ] = None,
    *,
    endpoint: Annotated[str | None, typer.Option(metavar="NAME", help="Only messages to this endpoint.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send messages again, with the same ids."""
    from guard.review.endpoints import Endpoints

    with open_store(store) as reviews:
        count = Endpoints(reviews).replay(*(messages or ()), endpoint=endpoint)
    if as_json:
        print_json({"messages": count})
    else:
        say(f"{count} to send again.")


@app.command()
def deliver(
    *,
    once: Annotated[bool, typer.Option("--once", help="Send the due messages, then exit.")] = False,
    function: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODULE:FUNCTION", help="Function of a python endpoint; repeatable."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send due messages and mark late cases until Ctrl-C. Several workers can run at the same time."""
    from guard.review.delivery import Deliverer
    from guard.review.endpoints import Endpoints

    functions = user_functions("function", function)
    with open_store(store) as reviews:
        known = [each.name for each in Endpoints(reviews).all() if each.kind == "python"]
        for name in functions:  # a misspelt one would never be called
            checked_choice("python endpoint", name, known)
        worker = Deliverer(reviews, functions)
        tried = worker.deliver()
        if not once:
            worker.run(threading.Event())
    if as_json:
        print_json({"tried": tried})
    else:
        say(f"{tried} messages tried.")


def _switch(name: str, store: str | None, as_json: bool, *, on: bool) -> None:
    from guard.review.endpoints import Endpoints

    with open_store(store) as reviews:
        Endpoints(reviews).switch(name, on=on)
    if as_json:
        print_json({"name": name, "on": on})
    else:
        say(f"{name} is {'on' if on else 'off'}.")


def _endpoints_table(endpoints: list[Endpoint]) -> Table:
    rows = [
        (
            each.name,
            each.kind,
            each.address,
            ", ".join(each.events) or "all",
            "on" if each.off_at is None else f"off since {when(each.off_at)}: {each.off_reason}",
        )
        for each in endpoints
    ]
    return plain_table(("name", "kind", "address", "events", "state"), rows)


def _messages_table(messages: list[Notification]) -> Table:
    rows = [
        (each.id, each.endpoint, each.event, each.review_id or "-", str(each.attempts), _state(each))
        for each in messages
    ]
    return plain_table(("message", "endpoint", "event", "case", "tries", "state"), rows)


def _state(message: Notification) -> str:
    ended = {"delivered": message.delivered_at, "dead": message.dead_at, "cancelled": message.cancelled_at}
    state = next((f"{name} {when(at)}" for name, at in ended.items() if at), f"next {when(str(message.next_at))}")
    return f"{state} ({message.last_error})" if message.last_error else state

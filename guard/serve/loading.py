"""Builds a server from its configuration: loads each model once, makes a guard per policy, opens keys and queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from guard.access import Access
from guard.console.settings import LOOPBACK_NAMES, ConsoleSettings, is_loopback
from guard.engines import load_engine
from guard.engines.protocols import Engine
from guard.errors import InputError, did_you_mean, missing_extra
from guard.files.user_code import load_function
from guard.policy.document import Escalate
from guard.policy.guarantee import refuse_guarantees
from guard.policy.policy import Policy, load_policy
from guard.review.database import is_shared
from guard.review.store import Store
from guard.runtime.guard import Guard
from guard.runtime.monitored import audits
from guard.runtime.sources import declared_sources
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer
from guard.serve.chat_routes import BACKGROUND
from guard.serve.config import ModelSection, ServeConfig
from guard.serve.decision_lines import DecisionLines
from guard.serve.responder import Watcher
from guard.serve.served_models import ServedModel, ServedModels
from guard.serve.server import Server
from guard.serve.telemetry import Telemetry


@contextmanager
def loaded_server(config: ServeConfig, *, engine: Engine | None = None) -> Iterator[Server]:
    """Load the parts of a server, and close them at the end.

    Args:
        config: the configuration.
        engine: answers for the only model, which it has loaded; it stays open. None loads each model.

    Raises:
        InputError: the server would listen beyond loopback without keys, or the settings of a model conflict.
        GuardError: as for `Guard.load`.
    """
    needs_keys = check_listening(config)
    with ExitStack() as opened:
        policies = {name: _policies(model) for name, model in config.models.items()}
        access = opened.enter_context(Access.open(config.store)) if needs_keys else None
        _check_keys(access, config)
        queued = any(_uses_queue(policy) for own in policies.values() for policy in own.values())
        wanted = queued or config.console or config.audit_log or is_shared(config.store)
        store = opened.enter_context(Store.open(config.store)) if wanted else None
        shared = {"store": store, "audit_log": store.audit_log() if store and config.audit_log else None}
        models = {
            name: load_model(name, each, policies[name], shared, opened, engine) for name, each in config.models.items()
        }
        watchers: list[Watcher] = [DecisionLines(), *([Telemetry()] if config.opentelemetry else [])]
        server = Server.build(ServedModels(models), config.settings(), access=access, store=store, watchers=watchers)
        if config.console is not None and store is not None:
            users = access or opened.enter_context(Access.open(config.store))
            server.console = console_app(config, store, users)
        yield server


def check_listening(config: ServeConfig) -> bool:
    """Return whether requests need a key.

    Raises:
        InputError: the server would listen beyond loopback without keys.
    """
    if is_loopback(config.listen.host):
        return bool(config.keys)
    if config.keys is False:
        raise InputError(
            f"The server would listen on {config.listen.host} without API keys",
            why="anyone who reaches it could use the model and fill the queue",
            fix="Make keys with guard keys add NAME, and leave out keys: false (--no-keys)",
        )
    return True


def console_app(config: ServeConfig, store: Store, access: Access) -> Any:
    """Return the review console of a server.

    Raises:
        InputError: the console would send passwords in the clear, or it has no account.
        MissingExtraError: packages of the console are not installed.
    """
    wanted, host = config.console, config.listen.host
    assert wanted is not None
    if not is_loopback(host) and not wanted.https:
        raise InputError(
            f"The console would be served on {host} by plain HTTP",
            why="passwords and cases would cross the network in the clear",
            fix="Put an HTTPS proxy in front, and write console: {https: true}",
        )
    if not access.users.exist():
        raise InputError("The console has no account yet", fix="Make one first: guard users add LOGIN admin")
    try:
        from guard.console.app import create_app
    except ImportError as error:
        raise missing_extra("argon2-cffi", "console") from error
    names = frozenset(wanted.names) | (LOOPBACK_NAMES if is_loopback(host) else frozenset())
    settings = ConsoleSettings(wanted.https, names, proxy_addresses=frozenset(wanted.proxies))
    return create_app(store, access, settings)


def _check_keys(access: Access | None, config: ServeConfig) -> None:
    if access is None:
        if config.unguarded_keys:
            raise InputError("unguarded_keys names API keys, but requests need none", fix="Write keys: true (--keys)")
        return
    names = {key.name for key in access.keys.all() if key.revoked_at is None}
    if not names:
        raise InputError("Requests need an API key, but there is none", fix="Make one first: guard keys add NAME")
    for name in config.unguarded_keys:
        if name not in names:
            raise InputError(
                f"unguarded_keys names the key '{name}', which does not exist", fix=did_you_mean(name, names)
            )


def _uses_queue(policy: Policy) -> bool:
    return policy.mode == "enforce" and ("review" in policy.handler_names() or audits(policy))


def _policies(model: ModelSection) -> dict[str, Policy]:
    """Return the policies of a model by name, the default policy first."""
    own = load_policy(model.policy)
    named = {name: load_policy(source) for name, source in model.policies.items()}
    return named if own.name in named and named[own.name] == own else {own.name: own, **_without(named, own.name)}


def _without(named: Mapping[str, Policy], name: str) -> dict[str, Policy]:
    if name in named:
        raise InputError(
            f"Two policies are called '{name}'", fix="Change its key in 'policies', or rename the default policy"
        )
    return dict(named)


def load_model(
    name: str,
    model: ModelSection,
    policies: Mapping[str, Policy],
    shared: Mapping[str, Any],
    opened: ExitStack,
    engine: Engine | None = None,
) -> ServedModel:
    """Load a model once, and make a guard for each of its policies.

    Args:
        name: the name for clients.
        model: the settings of the model.
        policies: policies by name; the first is the default.
        shared: arguments of `Guard` that all guards share: the store and the audit log.
        opened: closes everything that is loaded here.
        engine: has loaded the model already.
    """
    own, *others = policies
    for policy in policies.values():
        _check_background(name, model, policy)
        if policy.streaming == "live":
            refuse_guarantees(policy, caller="a live stream")
    functions = {
        "handlers": {key: load_function(text, "handler") for key, text in model.handlers.items()},
        "fallbacks": {key: load_function(text, "fallback") for key, text in model.fallbacks.items()},
    }
    if model.backends:
        from guard.serve.backend_loading import load_backends  # with the extra for served models

        pool = load_backends(name, model, policies, {**shared, **functions}, opened)
        guards = next(each for each in pool.backends if each.engine is not None).guards
        return ServedModel(name, guards, own, model.background, model.max_tokens, pool)
    if engine is None:
        first = _loaded(name, model, policies[own], shared, functions, opened)
    else:
        scorer = load_scorer(model.scorer or shipped_scorer())
        about = {name: getattr(model, name) for name in ("force_scorer", "certificate", "template_options")}
        first = _guard(engine, scorer, policies[own], about, shared, functions, opened)
    more = {other: _another(first, policies[other], shared, functions, opened) for other in others}
    return ServedModel(name, {own: first, **more}, own, model.background, model.max_tokens)


def _check_background(name: str, model: ModelSection, policy: Policy) -> None:
    route = model.background or BACKGROUND
    if route in policy.routes and any(isinstance(rule.settings, Escalate) for rule in policy.plan(route).all_rules):
        raise InputError(
            f"The route '{route}' of the policy '{policy.name}' escalates, and side requests go there",
            why="a person would get titles and tags to review",
            fix=f"Let it accept and abstain only, with an on_error of its own, or name another route for '{name}'",
        )
    if model.background is not None and model.background not in policy.routes:
        raise InputError(
            f"The model '{name}' has the background route '{model.background}', which its policy lacks",
            fix=did_you_mean(model.background, policy.routes) or f"Write it into the policy '{policy.name}'",
        )


def _loaded(
    name: str,
    model: ModelSection,
    policy: Policy,
    shared: Mapping[str, Any],
    functions: Mapping[str, Any],
    opened: ExitStack,
) -> Guard:
    """Return a guard on an engine that is loaded for it."""
    guard = Guard.load(
        model.model or name,
        scorer=model.scorer,
        policy=policy,
        engine=model.engine,
        engine_options=model.engine_options,
        force_scorer=model.force_scorer,
        certificate=model.certificate,
        template_options=model.template_options,
        handlers=functions["handlers"],
        fallbacks=functions["fallbacks"],
        **shared,
    )
    return opened.enter_context(guard)


def _another(
    first: Guard, policy: Policy, shared: Mapping[str, Any], functions: Mapping[str, Any], opened: ExitStack
) -> Guard:
    """Return a guard on the same engine and scorer with another policy."""
    about = {"force_scorer": not first.scorer.calibrated, "template_options": first.template_options}
    return _guard(first.engine, first.scorer, policy, about, shared, functions, opened)


def _guard(
    engine: Engine,
    scorer: Scorer,
    policy: Policy,
    about: Mapping[str, Any],
    shared: Mapping[str, Any],
    functions: Mapping[str, Any],
    opened: ExitStack,
) -> Guard:
    """Return a guard on an engine that is there; the fallbacks that its policy declares are loaded."""

    def load(model: str, options: dict[str, Any]) -> Engine:
        loaded: Engine = opened.enter_context(load_engine(model, **options))
        return loaded

    load_declared: Callable[[str, dict[str, Any]], Engine] = load
    given = functions["fallbacks"]
    fallbacks = {**declared_sources(policy, given=given, load=load_declared), **given}
    return Guard(engine, scorer, policy, fallbacks=fallbacks, handlers=functions["handlers"], **about, **shared)

"""Users, keys, sessions and links on real databases: what works, ends, is refused, and is never kept."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from argon2 import PasswordHasher

from guard.access import (
    ANYWHERE,
    Access,
    Allowed,
    Grant,
    KeyLimits,
    Permission,
    Principal,
    Refused,
    Role,
    may,
    passwords,
    reachable_routes,
)
from guard.access.authorisation import PERMISSIONS
from guard.errors import AccessError, GuardError, InputError
from guard.review import database, migrations

PASSWORD = "three plain words"
LEAD, REVIEWER = (Grant(Role.LEAD),), (Grant(Role.REVIEWER),)


class SetClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 31, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def access(url: str, clock: SetClock) -> Iterator[Access]:
    with Access(database.connect(url, create=True, timeout_s=5), clock) as opened:
        yield opened


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id, at the least cost that it takes: dozens of hashes of 64 MiB would take a minute."""
    monkeypatch.setattr(passwords, "_hasher", lambda: PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


# -- the decision ------------------------------------------------------------------------------


def principal(*grants: str) -> Principal:
    return Principal("p", "Pat", "user", tuple(map(Grant.parse, grants)))


#: What each role may do, written out a second time: a change of one alone is a slip.
TABLE = {
    "caller": "ask",
    "viewer": "see cases, see insights",
    "reviewer": "see cases, see insights, decide cases",
    "lead": "see cases, see insights, decide cases, reassign and adjudicate cases, try policies on recorded calls, "
    "read the history of every case",
    "auditor": "see cases, see insights, read the history of every case, read and verify the audit log",
    "admin": "administer accounts and webhooks",
}


@pytest.mark.parametrize(("role", "permission"), list(product(Role, Permission)))
def test_each_role_may_what_the_table_says_and_nothing_else(role: Role, permission: Permission) -> None:
    expected = permission.value in TABLE[role.value].split(", ")
    assert bool(may(principal(role.value), permission, "law")) is expected
    assert bool(may(principal(role.value), permission, None)) is expected
    assert bool(may(principal(role.value), permission, ANYWHERE)) is expected


def test_every_permission_is_given_by_some_role() -> None:
    assert set().union(*PERMISSIONS.values()) == set(Permission)
    assert set(PERMISSIONS) == set(Role)


def test_a_role_on_a_route_reaches_that_route_only() -> None:
    mira = principal("reviewer:medical", "viewer:law")
    assert may(mira, Permission.DECIDE, "medical") == Allowed(Role.REVIEWER)
    for route in ("law", "med", "medical2", "", None):
        assert isinstance(may(mira, Permission.DECIDE, route), Refused)
    assert may(mira, Permission.SEE_CASES, "law")
    assert may(mira, Permission.DECIDE, ANYWHERE)
    assert reachable_routes(mira, Permission.DECIDE) == {"medical"}
    assert reachable_routes(mira, Permission.SEE_CASES) == {"medical", "law"}
    assert reachable_routes(mira, Permission.ADMINISTER) == set()


def test_a_refusal_says_who_what_where_and_with_which_roles() -> None:
    refused = may(principal("reviewer:medical"), Permission.DECIDE, "law")
    assert isinstance(refused, Refused)
    assert refused.why == "Pat may not decide cases on the route law: reviewer:medical"
    nobody = may(principal(), Permission.ASK, None)
    assert isinstance(nobody, Refused)
    assert nobody.why == "Pat may not ask without a route: no role"


def test_a_route_called_like_the_mark_for_anywhere_reaches_nothing_more() -> None:
    star = principal("reviewer:*")
    assert not may(star, Permission.DECIDE, "law")
    assert not may(star, Permission.DECIDE, None)


@pytest.mark.parametrize("text", ["", "boss", "reviewer:", "admin:law", "Lead", "viewer : "])
def test_roles_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        Grant.parse(text)


# -- users -------------------------------------------------------------------------------------


def test_a_user_signs_in_by_name_and_password(access: Access) -> None:
    made = access.users.add(" Mira ", name="Mira Patel", grants=REVIEWER, password=PASSWORD)
    assert (made.id, made.name, made.has_password) == ("mira", "Mira Patel", True)
    assert access.users.check_login("MIRA", PASSWORD) == made
    assert access.users.all() == [made]


@pytest.mark.parametrize("login", ["", "-x", "a b", "a" * 65, "ünal", "a\0b", "a/b"])
def test_login_names_that_could_confuse_are_refused(access: Access, login: str) -> None:
    with pytest.raises(InputError, match="login name"):
        access.users.add(login, grants=LEAD)


def test_a_login_name_is_taken_once(access: Access) -> None:
    access.users.add("mira", grants=LEAD)
    with pytest.raises(AccessError, match="already"):
        access.users.add("Mira", grants=LEAD)


@pytest.mark.parametrize("password", ["short", "a" * 12, "x" * 1025, "mira" * 4])
def test_weak_passwords_are_refused(access: Access, password: str) -> None:
    with pytest.raises(InputError):
        access.users.add("mira", grants=LEAD, password=password)
    assert access.users.all() == []


def failure(access: Access, login: str, password: str) -> str:
    with pytest.raises(AccessError) as raised:
        access.users.check_login(login, password)
    return str(raised.value)


def test_a_wrong_name_and_a_wrong_password_read_the_same(access: Access) -> None:
    access.users.add("mira", grants=LEAD, password=PASSWORD)
    access.users.add("jonas", grants=LEAD)
    said = {failure(access, login, "something else") for login in ("mira", "nobody", "jonas", "a\0b", "\ud800", "")}
    assert said == {"Name or password is wrong. After 4 more tries this name is locked for 15 minutes."}


@pytest.mark.parametrize("login", ["mira", "nobody"])
def test_a_name_is_locked_after_five_wrong_passwords(access: Access, clock: SetClock, login: str) -> None:
    access.users.add("mira", grants=LEAD, password=PASSWORD)
    for _ in range(4):
        failure(access, login, "wrong wrong wrong")
    assert "is locked" in failure(access, login, "wrong wrong wrong")
    assert "Too many" in failure(access, login, PASSWORD)
    clock.move(minutes=14)
    assert "Too many" in failure(access, login, PASSWORD)
    clock.move(minutes=2)
    if login == "mira":
        assert access.users.check_login("mira", PASSWORD).id == "mira"
    else:
        assert "Name or password is wrong" in failure(access, login, PASSWORD)


def test_tries_made_at_once_count_each(access: Access) -> None:
    access.users.add("mira", grants=LEAD, password=PASSWORD)
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda number: failure(access, "mira", f"wrong wrong {number}"), range(8)))
    assert sum("Too many" in text for text in said) == 3


def test_a_right_password_forgets_the_wrong_ones(access: Access) -> None:
    access.users.add("mira", grants=LEAD, password=PASSWORD)
    for _ in range(3):
        for _ in range(3):
            assert "Too many" not in failure(access, "mira", "wrong wrong wrong")
        assert access.users.check_login("mira", PASSWORD).id == "mira"


def test_the_last_admin_stays(access: Access) -> None:
    access.users.add("ana", grants=(Grant(Role.ADMIN),))
    access.users.add("mira", grants=LEAD)
    for change in (lambda: access.users.disable("ana"), lambda: access.users.set_grants("ana", LEAD)):
        with pytest.raises(AccessError, match="last admin"):
            change()
    assert access.users.get("ana").grants == (Grant(Role.ADMIN),)
    access.users.set_grants("mira", (Grant(Role.ADMIN),))
    access.users.disable("ana")
    with pytest.raises(AccessError, match="last admin"):
        access.users.disable("mira")
    access.users.enable("ana")
    access.users.disable("mira")


def test_an_unknown_user_is_named_with_the_nearest(access: Access) -> None:
    access.users.add("mira", grants=LEAD)
    with pytest.raises(AccessError, match="Did you mean 'mira'"):
        access.users.get("miro")


# -- sessions ----------------------------------------------------------------------------------


def test_a_session_ends_after_idle_hours_and_after_its_days(access: Access, clock: SetClock) -> None:
    access.users.add("mira", grants=LEAD)
    secret = access.sessions.begin("mira")
    for _ in range(15):
        clock.move(hours=11)
        found = access.sessions.find(secret)
        assert found is not None
        assert found.user.id == "mira"
    clock.move(hours=11)
    assert access.sessions.find(secret) is None  # seven days
    idle = access.sessions.begin("mira")
    clock.move(hours=13)
    assert access.sessions.find(idle) is None


def test_signing_in_ends_the_session_that_the_browser_had(access: Access) -> None:
    access.users.add("mira", grants=LEAD)
    planted = access.sessions.begin("mira")
    secret = access.sessions.begin("mira", instead_of=planted)
    assert access.sessions.find(planted) is None
    assert secret != planted
    assert access.sessions.find(secret) is not None
    access.sessions.end(secret)
    assert access.sessions.find(secret) is None
    assert access.sessions.find("never given") is None


def test_a_session_has_the_roles_of_the_moment_and_none_of_a_disabled_user(access: Access) -> None:
    access.users.add("mira", grants=LEAD)
    secret = access.sessions.begin("mira")
    access.users.set_grants("mira", REVIEWER)
    found = access.sessions.find(secret)
    assert found is not None
    assert found.user.principal.grants == REVIEWER
    access.users.disable("mira")
    assert access.sessions.find(secret) is None
    assert access.sessions.find(access.sessions.begin("mira")) is None  # signed in at that very moment
    access.users.enable("mira")
    assert access.sessions.find(secret) is None  # ended, not only hidden


def test_a_new_password_ends_all_sessions(access: Access) -> None:
    access.users.add("mira", grants=LEAD)
    secrets = [access.sessions.begin("mira") for _ in range(2)]
    access.users.set_password("mira", PASSWORD)
    assert [access.sessions.find(secret) for secret in secrets] == [None, None]


# -- links -------------------------------------------------------------------------------------


def test_the_first_link_makes_an_admin_and_lead_once(access: Access) -> None:
    secret = access.links.for_first_user()
    assert access.links.check(secret) is None
    with pytest.raises(InputError, match="At least 12"):
        access.links.make_first_user(secret, "ana", password="short")
    made = access.links.make_first_user(secret, "ana", name="Ana", password=PASSWORD)
    assert {grant.role for grant in made.grants} == {Role.ADMIN, Role.LEAD}
    for use in (
        lambda: access.links.make_first_user(secret, "eve", password=PASSWORD),
        lambda: access.links.check(secret),
        access.links.for_first_user,
    ):
        with pytest.raises(AccessError):
            use()
    assert [user.id for user in access.users.all()] == ["ana"]


def test_of_two_who_use_a_link_at_once_one_gets_the_account(access: Access) -> None:
    secret = access.links.for_first_user()

    def make(number: int) -> bool:
        try:
            access.links.make_first_user(secret, f"user{number}", password=PASSWORD)
        except GuardError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(make, range(4))) == 1
    assert len(access.users.all()) == 1


def test_a_link_ends_and_a_newer_one_replaces_it(access: Access, clock: SetClock) -> None:
    old, new = access.links.for_first_user(), access.links.for_first_user()
    with pytest.raises(AccessError, match="does not work"):
        access.links.check(old)
    clock.move(minutes=31)
    with pytest.raises(AccessError, match="does not work"):
        access.links.make_first_user(new, "ana", password=PASSWORD)


def test_a_password_link_sets_the_password_of_its_user_only(access: Access) -> None:
    access.users.add("mira", grants=LEAD)
    session = access.sessions.begin("mira")
    secret = access.links.for_password("mira")
    assert access.links.check(secret) == "mira"
    with pytest.raises(AccessError):
        access.links.make_first_user(secret, "eve", password=PASSWORD)
    access.links.set_password(secret, PASSWORD)
    assert access.users.check_login("mira", PASSWORD).id == "mira"
    assert access.sessions.find(session) is None
    with pytest.raises(AccessError):
        access.links.set_password(secret, PASSWORD)


def test_the_first_link_sets_nobodys_password(access: Access) -> None:
    with pytest.raises(AccessError):
        access.links.set_password(access.links.for_first_user(), PASSWORD)


# -- keys --------------------------------------------------------------------------------------


def test_a_key_is_found_by_its_secret_and_by_nothing_else(access: Access) -> None:
    made, secret = access.keys.add("chat", grants=(Grant(Role.CALLER, "medical"),), limits=KeyLimits(60, 1000))
    found = access.keys.find(secret)
    assert found is not None
    assert (found.name, found.limits, found.principal.id) == ("chat", KeyLimits(60, 1000), made.prefix)
    assert secret.startswith(f"{made.prefix}_")
    for wrong in (made.prefix, secret[:-1], secret + "x", secret.upper(), "", "x", "\0", "\ud800", "grd_" + "0" * 41):
        assert access.keys.find(wrong) is None
    assert may(found.principal, Permission.ASK, "medical")
    assert not may(found.principal, Permission.SEE_CASES, "medical")


def test_a_revoked_key_works_no_more_and_its_name_is_free(access: Access) -> None:
    _, secret = access.keys.add("chat", grants=LEAD)
    with pytest.raises(AccessError, match="already"):
        access.keys.add("chat", grants=LEAD)
    access.keys.revoke("chat")
    assert access.keys.find(secret) is None
    with pytest.raises(AccessError, match="no valid key"):
        access.keys.revoke("chat")
    again, second = access.keys.add("chat", grants=LEAD)
    assert access.keys.find(second) is not None
    access.keys.revoke(again.prefix)
    assert access.keys.find(second) is None
    assert len(access.keys.all()) == 2


def test_a_key_ends(access: Access, clock: SetClock) -> None:
    _, secret = access.keys.add("chat", grants=LEAD, ends_at=clock.now + timedelta(days=1))
    clock.move(hours=23)
    assert access.keys.find(secret) is not None
    clock.move(hours=2)
    assert access.keys.find(secret) is None
    with pytest.raises(InputError, match="future"):
        access.keys.add("late", grants=LEAD, ends_at=clock.now)
    with pytest.raises(InputError, match="zone"):
        access.keys.add("zone", grants=LEAD, ends_at=datetime(2030, 1, 1))


def test_tokens_are_counted_by_calendar_month(access: Access, clock: SetClock) -> None:
    made, secret = access.keys.add("chat", grants=LEAD, limits=KeyLimits(tokens_per_month=100))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: access.keys.charge(made.prefix, 10), range(8)))
    assert access.keys.charge(made.prefix, 5) == 85
    found = access.keys.find(secret)
    assert found is not None
    assert found.used_tokens == 85
    clock.move(days=1)  # 1 February
    found = access.keys.find(secret)
    assert found is not None
    assert found.used_tokens == 0
    assert access.keys.charge(made.prefix, 3) == 3
    with pytest.raises(AccessError):
        access.keys.charge("grd_nobodys0", 1)
    with pytest.raises(InputError):
        access.keys.charge(made.prefix, -1)


def _moved(access: Access, seconds: float) -> None:
    """Let the database's clock be ahead, or behind."""
    access._database.clock = lambda _: datetime.now(UTC) + timedelta(seconds=seconds)


def test_a_minute_has_as_many_requests_as_its_limit_whoever_counts_them(access: Access) -> None:
    limits = KeyLimits(requests_per_minute=7)
    made, _ = access.keys.add("chat", grants=LEAD, limits=limits)
    with ThreadPoolExecutor(8) as pool:
        used = list(pool.map(lambda _: access.keys.take(made.prefix, limits), range(24)))
    assert sorted(each.requests for each in used if each.reached is None) == [1, 2, 3, 4, 5, 6, 7]
    assert {each.reached for each in used} == {None, "requests"}
    assert all(0 < each.left_s <= 60 for each in used)
    _moved(access, 61)
    assert access.keys.take(made.prefix, limits).requests == 1
    _moved(access, -3600)
    assert access.keys.take(made.prefix, limits).requests == 1, "a clock that was set back begins a new minute"


def test_tokens_of_a_minute_are_known_after_an_answer(access: Access) -> None:
    limits = KeyLimits(tokens_per_minute=100)
    made, _ = access.keys.add("chat", grants=LEAD, limits=limits)
    assert access.keys.take(made.prefix, limits).reached is None
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: access.keys.charge(made.prefix, 25), range(4)))
    refused = access.keys.take(made.prefix, limits)
    assert (refused.reached, refused.tokens) == ("tokens", 100)
    _moved(access, 61)
    access.keys.charge(made.prefix, 30)
    assert access.keys.take(made.prefix, limits).tokens == 30


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "9"])
def test_limits_that_mean_nothing_are_refused(limit: object) -> None:
    with pytest.raises(InputError):
        KeyLimits(requests_per_minute=limit)  # type: ignore[arg-type]


def test_passwords_are_hashed_as_argon2_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    kept = passwords.hash_password(PASSWORD)
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert passwords.verify_password(PASSWORD, kept)
    assert not passwords.verify_password(PASSWORD + " ", kept)
    assert not passwords.verify_password("the password of nobody", None)
    assert not passwords.verify_password(PASSWORD, "damaged")


# -- at rest -----------------------------------------------------------------------------------


def test_no_secret_is_in_the_file(path: Path) -> None:
    with Access.open(path) as access:
        first = access.links.for_first_user()
        access.links.make_first_user(first, "ana", password=PASSWORD)
        secrets = [
            first,
            PASSWORD,
            access.sessions.begin("ana"),
            access.links.for_password("ana"),
            access.keys.add("chat", grants=LEAD)[1],
        ]
    connection = sqlite3.connect(path)
    dump = "\n".join(connection.iterdump())
    connection.close()
    assert [secret for secret in secrets if secret in dump] == []
    assert "$argon2id$" in dump


def test_the_tables_go_up_and_down_with_rows_in_them(url: str) -> None:
    with Access.open(url) as access:
        access.links.make_first_user(access.links.for_first_user(), "ana", password=PASSWORD)
        access.sessions.begin("ana")
        limits = KeyLimits(60, 1000)
        access.keys.take(access.keys.add("chat", grants=LEAD, limits=limits)[0].prefix, limits)
    connected = database.connect(url, create=False, timeout_s=5)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with connected.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
        assert not [name for name in sa.inspect(connection).get_table_names() if name.startswith("access")]
    connected.close()
    with Access.open(url) as access:
        assert not access.users.exist()
        assert access.users.add("ana", grants=LEAD).id == "ana"

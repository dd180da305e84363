"""A throw-away PostgreSQL server for the tests of what is kept in a database.

``GUARD_TEST_POSTGRESQL`` decides where those tests run:

- unset: on a server that is started here where its programs and psycopg are installed, else not at all;
- ``required``: the same, and it is an error where they are missing (as in CI);
- ``no``: not at all;
- a URL (``postgresql://...``): in that scratch database, whose public schema is dropped.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

SETTING = os.environ.get("GUARD_TEST_POSTGRESQL", "")

#: The server refuses to run as root; Debian's package makes this user.
_USER = "postgres"

_SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "listen_addresses=")


def is_available() -> bool:
    """Whether the tests run on PostgreSQL.

    Raises:
        RuntimeError: it is required, and cannot be started here.
    """
    if "://" in SETTING:
        return True
    if SETTING == "no":
        return False
    missing = _missing()
    if missing and SETTING == "required":
        raise RuntimeError(f"GUARD_TEST_POSTGRESQL is 'required', but {missing}")
    if SETTING not in ("", "required"):
        raise RuntimeError(f"GUARD_TEST_POSTGRESQL is 'required', 'no' or a URL, not '{SETTING}'")
    return missing is None


def emptied() -> str:
    """URL of the scratch database, whose tables of earlier tests are dropped."""
    import sqlalchemy as sa

    engine = sa.create_engine(url().replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return url()


@cache
def url() -> str:
    """URL of the scratch database; a server is started for it once in a process, and stopped at its end."""
    return SETTING if "://" in SETTING else _start()


def _missing() -> str | None:
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed"
    if _programs() is None:
        return "there is no initdb (Debian: apt-get install postgresql)"
    return None


def _programs() -> Path | None:
    """The folder of initdb and pg_ctl; Debian keeps them off the path, one folder a version."""
    found = shutil.which("initdb")
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    versions.sort(key=lambda path: int(path.parent.name) if path.parent.name.isdecimal() else 0)
    return Path(found).parent if found else versions[-1] if versions else None


def _start() -> str:
    programs = _programs()
    assert programs is not None
    folder = Path(mkdtemp(prefix="guard-postgresql-"))  # short: a socket's path has at most 107 bytes
    if os.geteuid() == 0:
        shutil.chown(folder, _USER)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data, log = folder / "data", folder / "log"
    _run(programs / "initdb", "--pgdata", data, "--username", _USER, "--auth", "trust", "--encoding", "UTF8")
    options = " ".join(f"-c {setting}" for setting in (*_SETTINGS, f"unix_socket_directories={folder}"))
    _run(programs / "pg_ctl", "start", "--wait", "--pgdata", data, "--log", log, "--options", options)
    atexit.register(_run, programs / "pg_ctl", "stop", "--pgdata", data, "--mode", "immediate")
    return f"postgresql://{_USER}@/postgres?host={folder}"


def _run(program: Path, *arguments: str | Path) -> None:
    command = [str(program), *map(str, arguments)]
    user = _USER if os.geteuid() == 0 else None
    # pg_ctl's server keeps the output it inherits open, so nothing may wait for its end.
    subprocess.run(command, check=True, cwd="/", user=user, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

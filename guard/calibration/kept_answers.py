"""What a calibration that reads answers while they grow, or span by span, keeps of each, so that it can be resumed."""

from __future__ import annotations

import json
from typing import Any

from guard.data.header_journal import HeaderJournal
from guard.errors import InputError


class KeptAnswers(HeaderJournal):
    """Answers as JSON values, each safe on disk once `keep` returns."""

    TABLES = ("header", "kept")
    SCHEMA = "CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, content TEXT NOT NULL)"

    def answered(self) -> set[str]:
        """Return the keys of all rows: a question that could not be asked is not kept, and asked again."""
        return self.keys()

    def content(self, key: str) -> Any:
        """Return what was kept of an answer; None if nothing was.

        Raises:
            InputError: the file is damaged.
        """
        with self._translated():
            found = self._db.execute("SELECT content FROM kept WHERE key = ?", (key,)).fetchone()
        try:
            return json.loads(found[0]) if found else None
        except (ValueError, TypeError) as error:
            raise self.damaged(error) from error

    def keep(self, key: str, content: Any) -> None:
        """Store what is kept of an answer."""
        with self._translated():
            self._db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (key, json.dumps(content)))

    def damaged(self, error: Exception) -> InputError:
        """Return the error of a value that cannot be read."""
        return InputError(f"'{self.path}' is damaged", why=str(error), fix="Delete it to start again")

"""Alembic's entry point: run the migrations on the connection that `guard.review.migrations.upgrade` gives."""

from alembic import context

from guard.review.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()

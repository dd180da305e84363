"""Engines: one module each, one protocol. See `guard.backends.base`."""

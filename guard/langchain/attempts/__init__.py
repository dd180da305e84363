"""Attempts that chains and agents share: settings, costs, buffered callbacks, trusted fallbacks. Internal."""

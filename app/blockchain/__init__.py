"""Talks to nodes and derives addresses; answers with frozen dataclasses. Knows no SQL and no rules."""

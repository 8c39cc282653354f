"""Paywatch: a self-hosted crypto payment watcher for EVM chains."""

__version__ = "0.1.0"  # pyproject.toml reads it here; the image holds this package without its metadata

"""Paywatch: a self-hosted crypto payment watcher for EVM chains."""

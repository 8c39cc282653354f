"""Repeatable measurements, each printing a ratio."""

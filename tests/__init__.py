"""Tests mirror app/; they use the real parts in tests/support."""

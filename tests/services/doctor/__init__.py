"""`paywatch doctor` on real parts."""

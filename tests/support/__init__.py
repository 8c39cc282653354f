"""Real parts for tests: an EVM node, PostgreSQL, Redis and a webhook receiver, all on this machine only."""

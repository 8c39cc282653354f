"""Rules and transactions: what is decided, and what is written together."""

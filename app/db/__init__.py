"""The database: models, queries and the two kinds of session. Knows nothing of nodes, rules or HTTP."""

"""Every SELECT of Paywatch. Functions take the session of a transaction that somebody else commits."""

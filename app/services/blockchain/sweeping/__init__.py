"""The sweeper's rooms: what a round knows, what it plans, signs and follows."""

"""Services that follow chains."""

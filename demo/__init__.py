"""`make demo`: one order paid in ether and one in a token, on a chain of this machine, from creation to settled."""

"""The world around a gateway on one machine, for the demo and the tests: a real chain, and a merchant who listens."""

"""When and how many at once: ARQ workers, one queue per role."""

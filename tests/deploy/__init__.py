"""Goal: what operators deploy is what this checkout is."""

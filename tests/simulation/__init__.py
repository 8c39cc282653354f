"""A gateway on a simulated chain behind nodes that misbehave, all of it drawn from one seed.

`python -m tests.simulation --seeds 1000 --jobs 2` runs many, `--seed 1234 -v` repeats one. `chain` is the truth, `node`
what is told of it, `world` the run, `truth` the judgement after it, `virtual` the time and the turns they share.
"""

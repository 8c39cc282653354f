"""`make bench`: every measurement, one after the other."""

import sys

from benchmarks import scanner, sweep_gas

if __name__ == "__main__":
    failures = [sweep_gas.main(), scanner.main()]
    sys.exit(max(failures))

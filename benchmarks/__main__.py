"""`make bench`: every measurement, one after the other. Options go to the first."""

import sys

from benchmarks import scanner, sweep_gas, webhooks

if __name__ == "__main__":
    sys.exit(max(sweep_gas.main(), scanner.main(), webhooks.main([])))

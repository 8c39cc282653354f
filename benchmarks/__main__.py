"""`make bench`: every measurement, one after the other. Options go to the first."""

import sys

from benchmarks import scanner, webhooks

if __name__ == "__main__":
    sys.exit(max(scanner.main(), webhooks.main([])))

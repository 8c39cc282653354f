"""`make bench`: every measurement, one after the other."""

import sys

from benchmarks import scanner

if __name__ == "__main__":
    sys.exit(scanner.main())

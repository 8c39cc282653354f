"""`python -m tests.simulation --seeds 1000 --jobs 2`, or `--seed 1234 -v` to repeat one and be told its course."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack

from tests.simulation.runs import Runs
from tests.simulation.world import Report
from tests.support.postgres import Postgres

TOLD = 8  # failed seeds whose problems are printed
CHUNK = 10  # seeds that a process takes at once
COUNTS = ("blocks", "reorgs", "steps", "passes", "rescans", "resets", "found", "jobs failed", "requests", "payments")
TRANSFERS = ("transfers", "internal", "orphaned")  # of the final chain; those inside transactions; taken back by forks


def run_all(seeds: Iterable[int], postgres: bool = False, keep_log: bool = False, resets: bool = False) -> list[Report]:
    """Run seeds in this process."""
    reports = []
    with ExitStack() as exits:
        server = exits.enter_context(Postgres.from_environment()) if postgres else None
        runs = exits.enter_context(Runs(server))
        for seed in seeds:
            report = runs.run(seed, resets)
            if not keep_log:
                report.log = []
            reports.append(report)
    return reports


def main() -> int:
    """Run what the command line asks for; 1 when any seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--seeds", type=int, default=200, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument(
        "--postgres", action="store_true", help="on PostgreSQL, where the server orders what runs beside"
    )
    parser.add_argument("--resets", action="store_true", help="an operator sets the cursor back now and then")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell the course of a failed run, or of --seed")
    options = parser.parse_args()
    began = time.monotonic()
    if options.seed is not None:
        reports = run_all([options.seed], options.postgres, keep_log=True, resets=options.resets)
        if options.verbose:
            sys.stdout.write("\n".join(reports[0].log) + "\n")
    else:
        reports = _in_processes(options)
    failed = [report for report in reports if report.problems]
    for report in sorted(failed, key=lambda each: each.seed)[:TOLD]:
        problems = "\n  ".join(report.problems[:4])
        sys.stdout.write(f"\nseed {report.seed} failed:\n  {problems}\n")
    sys.stdout.write(_summary(reports, failed, time.monotonic() - began))
    return 1 if failed else 0


def _in_processes(options: argparse.Namespace) -> list[Report]:
    seeds = range(options.first, options.first + options.seeds)
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    reports: list[Report] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for future in as_completed(
            [pool.submit(run_all, chunk, options.postgres, False, options.resets) for chunk in chunks]
        ):
            reports += future.result()
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{len(reports)} of {len(seeds)}")
    return reports


def _summary(reports: list[Report], failed: list[Report], seconds: float) -> str:
    counts: Counter[str] = sum((report.counts for report in reports), Counter())
    faults: Counter[str] = sum((report.faults for report in reports), Counter())
    kills = sum(count for kind, count in faults.items() if kind.startswith("kill"))
    events = sorted((kind, count) for kind, count in counts.items() if kind.startswith("payment."))
    lines = [
        "",
        f"{len(reports)} runs in {seconds:.0f} s, {len(failed)} failed",
        ", ".join(f"{counts[name]} {name}" for name in COUNTS + TRANSFERS) + f", {kills} kills",
        "events: " + ", ".join(f"{kind.removeprefix('payment.')} {count}" for kind, count in events),
        "faults: " + ", ".join(f"{kind} {count}" for kind, count in faults.most_common()),
    ]
    if failed:
        seeds = " ".join(str(seed) for seed in sorted(report.seed for report in failed))
        lines += [f"failed seeds: {seeds}", "repeat one with: python -m tests.simulation --seed N -v"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

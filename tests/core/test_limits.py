"""Goal: the limits that lean on one another still do."""

from app.core import limits

ARQ_GRACE_S = 10  # arq keeps a dead worker's job this long after its timeout
TAKEOVER_S = 30  # DESIGN section 2, guarantee 5


def test_a_killed_workers_job_is_taken_over_within_thirty_seconds() -> None:
    assert limits.LISTENER_JOB_TIMEOUT_S + ARQ_GRACE_S < TAKEOVER_S
    assert limits.WEBHOOK_JOB_TIMEOUT_S + ARQ_GRACE_S < TAKEOVER_S
    assert limits.WEBHOOK_LEASE_S < TAKEOVER_S


def test_inner_timeouts_end_before_outer_ones() -> None:
    assert limits.RPC_TIMEOUT_S < limits.STEP_TIMEOUT_S < limits.LISTENER_JOB_TIMEOUT_S
    assert limits.WEBHOOK_CONNECT_TIMEOUT_S < limits.WEBHOOK_TIMEOUT_S
    attempt_s = limits.WEBHOOK_TIMEOUT_S + limits.WEBHOOK_ANSWER_TIMEOUT_S
    assert attempt_s + limits.DB_COMMAND_TIMEOUT_S < limits.WEBHOOK_LEASE_S
    assert limits.HOUSEKEEPING_S + limits.DB_COMMAND_TIMEOUT_S < limits.WEBHOOK_JOB_TIMEOUT_S
    assert limits.SHUTDOWN_S < 10


def test_retries_follow_the_designs_times() -> None:
    minute_s, hour_s = 60, 3600
    expected = (5, 5 * minute_s, 30 * minute_s, *(hours * hour_s for hours in (2, 5, 10, 14, 20, 24)))
    assert expected == limits.WEBHOOK_RETRY_DELAYS_S


def test_nothing_expires_by_a_head_that_was_not_compared_after_its_end() -> None:
    """An idle chain expires a payment IDLE_GRACE_S after its end, when the head is at least as old."""
    assert limits.HEAD_OLD_S <= limits.IDLE_GRACE_S
    assert limits.HEAD_COMPARE_EVERY_S < limits.IDLE_GRACE_S

"""Webhooks that are owed."""

from datetime import timedelta

from app.core import limits
from app.core.clock import rfc3339, utc_now
from app.core.logger import redact_url
from app.db.repositories import diagnosis, pauses
from app.services.doctor.finding import Finding, Patient, failed, ok, warning


async def check_webhooks(patient: Patient) -> list[Finding]:
    """What is due for long, what was given up, and endpoints that get nothing any more."""
    now = utc_now()
    lately = now - timedelta(seconds=limits.DOCTOR_DEAD_S)
    async with patient.context.db.read() as session:
        counts = await diagnosis.deliveries(session, now, lately)
        disabled = await diagnosis.disabled_endpoints(session)
        paused = await pauses.webhooks_paused(session)
        failing = await diagnosis.failing_receivers(session)
    return [
        _due(patient, counts, (now - (counts.due_since or now)).total_seconds(), paused),
        _dead(counts),
        _endpoints(disabled),
        _receivers(failing),
    ]


def _due(patient: Patient, counts: diagnosis.Deliveries, oldest_s: float, paused: bool) -> Finding:
    """Neither a pause nor a receiver that is only probed is a fault of ours: `pause:` and the merchant's log say it."""
    if paused or oldest_s <= limits.DOCTOR_DUE_S:
        return ok("webhooks due", f"{counts.due}" + (", while webhooks are paused" if paused else ""))
    found = f"{counts.due}, the oldest for {oldest_s:.0f} s: no worker sends"
    return failed("webhooks due", found, patient.start_worker("webhook"))


def _dead(counts: diagnosis.Deliveries) -> Finding:
    if not counts.dead:
        return ok("webhooks dead", "0")
    since = rfc3339(utc_now() - timedelta(seconds=limits.DOCTOR_DEAD_S))[:10]
    remedy = f"mend the receiver, then paywatch webhooks replay --since {since}"
    if counts.dead_lately:
        return failed("webhooks dead", f"{counts.dead}, {counts.dead_lately} of them made within a week", remedy)
    return warning("webhooks dead", f"{counts.dead}, all older than a week", "paywatch webhooks replay --since DATE")


def _endpoints(disabled: list[tuple[str, str]]) -> Finding:
    broken = [(endpoint_id, reason) for endpoint_id, reason in disabled if reason != "merchant"]
    if broken:
        first = next((each for each, reason in broken if reason != "gone"), broken[0][0])
        named = ", ".join(f"{endpoint_id} ({reason})" for endpoint_id, reason in broken)
        remedy = (
            f'mend the receiver, enable it: PATCH /v1/webhook_endpoints/{first} with {{"enabled": true}}; '
            "then paywatch webhooks replay"
        )
        told = failed if any(reason != "gone" for _, reason in broken) else warning  # 410: by the receiver's own word
        return told("webhook endpoints", f"disabled by what they answered: {named}", remedy)
    return ok("webhook endpoints", f"{len(disabled)} disabled by their merchants" if disabled else "none is disabled")


def _receivers(failing: list[tuple[str, str]]) -> Finding:
    """A merchant's own fault, told by what the receiver answers: what is right or wrong there is not seen from here."""
    if not failing:
        return ok("webhook receivers", "none fails")
    seen = sorted({f"{redact_url(url)}: {error}" for url, error in failing})
    if {error for _, error in failing} & {"http_401", "http_403"}:
        remedy = "it refuses the signature, or asks for a login: give it the secret of paywatch webhooks secret"
    else:
        remedy = "mend the receiver; what waits is tried again by itself"
    return warning("webhook receivers", f"they fail and are tried again: {', '.join(seen)}", remedy)

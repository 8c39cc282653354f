"""What an operator has paused, and may have forgotten."""

from app.services import pauses
from app.services.doctor.finding import Finding, Patient, ok, warning


async def check_pauses(patient: Patient) -> list[Finding]:
    """Not failures: somebody wants them so."""
    async with patient.context.db.read() as session:
        paused = await pauses.list_pauses(session)
    found = [
        warning(f"pause:{each.what}", f"by {each.paused_by} since {each.since}: {each.reason}", each.resume_command)
        for each in paused
    ]
    return found or [ok("pauses", "nothing is paused")]

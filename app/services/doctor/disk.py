"""The disk under SQLite's file: full or closed it stops everything, and nodes and workers look guilty."""

import asyncio
import os
from pathlib import Path
from typing import Final

from sqlalchemy import make_url

from app.core import limits
from app.services.doctor.finding import Finding, Patient, failed, ok, warning

_MIB: Final = 1_048_576


async def check_disk(patient: Patient) -> list[Finding]:
    """Whether the file can still be written to. PostgreSQL's disk is another machine's, and not seen from here."""
    url = make_url(patient.context.settings.database_url)
    if not url.drivername.startswith("sqlite") or not url.database:
        return []
    return await asyncio.to_thread(_look, url.database)


def _look(name: str) -> list[Finding]:
    file = Path(name).absolute()
    folder = file.parent
    try:
        if not folder.is_dir():
            return []  # `database` says that it is not there
        closed = next((each for each in (folder, file) if each.exists() and not os.access(each, os.W_OK)), None)
    except PermissionError:  # in a folder of somebody else, as that of the services is for whoever else asks
        closed = file
    if closed is not None:
        remedy = "run it as the user that owns it; or mount its disk for writing: the system's log says why it is not"
        return [failed("disk", f"{closed} cannot be written to by uid {os.geteuid()}", remedy)]
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    found, remedy = f"{free // _MIB} MiB free at {folder}", "make room there: nothing is stored on a full disk"
    if free < limits.DOCTOR_DISK_FULL_BYTES:
        return [failed("disk", found, remedy)]
    if free < limits.DOCTOR_DISK_LOW_BYTES:
        return [warning("disk", found, remedy)]
    return [ok("disk", found)]

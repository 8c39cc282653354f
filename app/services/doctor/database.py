"""The database by itself: there, of the right form, and not held up."""

from app.core import limits
from app.db import schema
from app.db.repositories import diagnosis
from app.db.schema import SchemaError, show_url
from app.services.doctor.finding import Finding, Patient, failed, ok, warning

BACKUP = "pg_dump"  # what it calls itself to the database


async def check_database(patient: Patient) -> list[Finding]:
    """Whether it answers, and is of this version; what needs that is not looked at otherwise."""
    settings = patient.context.settings
    where = show_url(settings.database_url)
    try:
        problem = await schema.schema_problem(settings.database_url)
    except SchemaError as error:
        patient.down["database"] = "the database is away"
        mend = "see disk here" if patient.context.db.is_sqlite else "start the database"
        return [failed("database", str(error), f"{mend}, or mend PAYWATCH_DATABASE_URL; then paywatch doctor")]
    if problem is not None:
        patient.down["schema"] = "the schema is not at head"
    return [ok("database", where)]


async def check_schema(patient: Patient) -> list[Finding]:
    """Whether tables, columns and indexes are what the models say."""
    differences = await schema.check(patient.context.settings.database_url)
    if "schema" in patient.down:
        return [failed("schema", "; ".join(differences).partition(": run")[0], "python migrate.py upgrade")]
    if differences:
        remedy = "undo what was changed by hand; python migrate.py check shows the rest, MIGRATIONS.md how to recover"
        return [failed("schema", "; ".join(differences[: limits.DOCTOR_ROWS]), remedy)]
    return [ok("schema", "at head, and equal to the models")]


async def check_locks(patient: Patient) -> list[Finding]:
    """Transactions and statements that hold others up."""
    db = patient.context.db
    if db.is_sqlite:
        if await diagnosis.writer_is_free(patient.context.settings.database_url, limits.DOCTOR_LOCK_WAIT_S):
            return [ok("locks", "the writer's place is free"), ok("slow queries", "SQLite keeps no list of them")]
        found = f"another process has held the writer's place for {limits.DOCTOR_LOCK_WAIT_S:.0f} s or more"
        return [failed("locks", found, "end what writes to the file: `fuser -v` of it names the process")]
    async with db.read() as session:
        sessions = await diagnosis.other_sessions(session)
        slow = await diagnosis.slow_statements(session)
    return [_long_transactions(sessions), _slow_queries(sessions, slow)]


def _long_transactions(sessions: list[diagnosis.Session]) -> Finding:
    """Only a session that others wait for is to be ended, and never a backup, which would begin anew."""
    holding = {each.blocked_by for each in sessions if each.blocked_by is not None}
    for each in sessions:
        blocks = each.pid in holding and each.blocked_by is None and each.application != BACKUP
        if blocks and each.transaction_s > limits.DOCTOR_QUERY_S:
            found = f"{_named(each)} for {each.transaction_s:.0f} s, and others wait for it"
            return failed("locks", found, f"psql -c 'SELECT pg_terminate_backend({each.pid})'")
    old = next((each for each in sessions if each.transaction_s > limits.DOCTOR_TRANSACTION_S), None)
    if old is not None:
        found = f"{_named(old)} for {old.transaction_s:.0f} s"
        return warning("locks", found, _who(old))
    return ok("locks", "no transaction lasts, and nobody waits for one")


def _named(each: diagnosis.Session) -> str:
    return f"session {each.pid} ({each.application or 'unnamed'}, {each.state}) has been in one transaction"


def _who(each: diagnosis.Session) -> str:
    if each.application == BACKUP:
        return "let it end: a backup reads for as long as it takes, and holds up nothing but a migration"
    return f"session {each.pid} in psql -c 'TABLE pg_stat_activity' says what it does"


def _slow_queries(sessions: list[diagnosis.Session], slow: list[tuple[float, int]] | None) -> Finding:
    """What is slow and in nobody's way; `locks` names what is."""
    for each in sessions:
        if each.statement_s > limits.DOCTOR_QUERY_S:
            found = f"session {each.pid} has been running one statement for {each.statement_s:.0f} s"
            return warning("slow queries", found, _who(each))
    if slow:
        found = f"{len(slow)} statements take {slow[0][0]:.0f} ms and less on average, more than is well"
        return warning("slow queries", found, "psql -c 'VACUUM ANALYZE'; pg_stat_statements has their text")
    return ok("slow queries", "none is running" + ("" if slow is None else ", and none is slow on average"))

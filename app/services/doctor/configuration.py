"""Settings, chains.yaml, secrets and the files that hold them."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from dotenv import dotenv_values
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from app.blockchain.manager import BlockchainManager
from app.blockchain.wallet import AddressDeriver
from app.core.chains import ChainsFile, load_chains
from app.core.config import SECRET_KEY_CHARS, Settings, load_what_loads, read_environment
from app.core.errors import ConfigError, PaywatchError
from app.core.evm import checksum
from app.core.netguard import NetGuard
from app.core.secret_files import ENV_PREFIX, FROM_FILES
from app.core.secrets import SecretBox
from app.db.engine import Database
from app.db.repositories import diagnosis
from app.db.schema import is_missing_file, show_url
from app.services.context import Context
from app.services.doctor.finding import RESTART, Finding, Patient, failed, ok, warning
from app.services.wallet import deposit_xpub

_DISTINCT_CHARS = 8  # a random key of 32 characters has more; "xxxx…" and "changeme…" repeated do not
_NOWHERE = f"sqlite+aiosqlite:///{os.devnull}"


def admit() -> tuple[Patient | None, list[Finding]]:
    """The installation of this folder, and what is wrong with its configuration. None when no setting can be read."""
    settings, problem = load_what_loads()
    if settings is None:
        return None, [
            failed("settings", problem or "", "set the variable in .env or the environment, as the README says")
        ]
    findings = []
    patient = make_patient(settings, ChainsFile(settings.chains_file, (), None))
    if problem is None:
        findings.append(ok("settings", "they load" + (", embedded mode" if settings.embedded else ", production")))
    else:
        findings.append(
            failed("settings", problem, "mend the variable in .env or the environment; the README has them all")
        )
        for name, thing in (("DATABASE_URL", "database"), ("REDIS_URL", "redis")):
            if f"PAYWATCH_{name}" in problem:
                patient.down[thing] = f"PAYWATCH_{name} is wrong"  # type: ignore[index]
    try:
        chains = load_chains(settings.chains_file, read_environment())
    except ConfigError as error:
        patient.down["chains.yaml"] = "chains.yaml is wrong"
        findings.append(
            failed(
                "chains.yaml",
                str(error),
                f"mend {settings.chains_file}; each of its keys is explained in it; {RESTART}",
            )
        )
        return patient, findings
    names = ", ".join(chain.name for chain in chains.enabled) or "none"
    findings.append(
        ok("chains.yaml", f"enabled: {names}")
        if chains.enabled
        else failed(
            "chains.yaml", "no chain is enabled", f"set enabled: true on a chain in {settings.chains_file}; {RESTART}"
        )
    )
    down = patient.down
    patient = make_patient(settings, chains)
    patient.down.update(down)
    return patient, findings


def make_patient(settings: Settings, chains: ChainsFile) -> Patient:
    """Everything that can be opened without asking or making anything."""
    if settings.embedded and not settings.has_private_key:
        chains = chains.without_sweeping()
    db, problem = _database(settings.database_url)
    context = Context(
        settings=settings,
        chains=chains,
        db=db,
        nodes=BlockchainManager(chains.enabled),
        box=SecretBox(secret_key(settings) or "none"),
        guard=NetGuard(settings.webhook_allow_networks),
    )
    patient = Patient(context, settings.redis_url or _embedded_redis(settings))
    if problem is not None:
        patient.down["database"] = problem
    return patient


def _database(url: str) -> tuple[Database, str | None]:
    """The database, or a stand-in and why: an engine makes the folder of its file, or is refused."""
    try:
        if not is_missing_file(url):
            return Database(url), None
    except (PaywatchError, SQLAlchemyError, OSError) as error:
        return Database(_NOWHERE), f"{show_url(url)} cannot be opened: {type(error).__name__}"
    return Database(_NOWHERE), f"{show_url(url)} is not there"


async def check_secrets(patient: Patient) -> list[Finding]:
    """The secret key, the files that hold secrets, and a private key where none belongs."""
    settings = patient.context.settings
    return [_key_strength(settings), *_permissions(settings), _private_key(settings)]


async def check_secret_key(patient: Patient) -> list[Finding]:
    """Whether what is stored opens with the configured key."""
    async with patient.context.db.read() as session:
        sealed = await diagnosis.any_secret(session)
    try:
        if sealed is not None:
            patient.context.box.decrypt(sealed)
    except PaywatchError as error:
        return [failed("stored secrets", str(error), "give back the PAYWATCH_SECRET_KEY that they were stored under")]
    return [
        ok("stored secrets", "they open" if sealed is not None else "none yet: the server's first start makes them")
    ]


async def check_wallet(patient: Patient) -> list[Finding]:
    """Whether the configured wallet is there, and is the one that addresses were made from."""
    settings = patient.context.settings
    if settings.xpub is None and not settings.has_private_key:
        if not settings.embedded:  # a server without one does not start, which `process:server` tells
            found = "none here: right for a worker of the listener's and webhook's roles; server and sweeper need one"
            return [ok("wallet", found)]
        return [failed("wallet", "no wallet is configured", "paywatch keys init, then set PAYWATCH_XPUB")]
    try:
        deriver = AddressDeriver(deposit_xpub(settings))
    except ConfigError as error:
        return [failed("wallet", str(error), "set PAYWATCH_XPUB to what `paywatch keys init` printed for this wallet")]
    if "database" in patient.down or "schema" in patient.down:
        return [
            ok("wallet", "its extended public key is readable; the database cannot say whether it is the stored one's")
        ]
    async with patient.context.db.read() as session:
        newest = await diagnosis.newest_address(session)
    if newest is not None and deriver.address(newest.branch, newest.id) != newest.address:
        found = f"the address {checksum(newest.address)} was made from another wallet"
        return [failed("wallet", found, "give back the PAYWATCH_XPUB (or words) that this database was used with")]
    return [ok("wallet", "it made the addresses" if newest is not None else "readable; no address was made yet")]


def _key_strength(settings: Settings) -> Finding:
    key = secret_key(settings)
    make_one = (
        "set PAYWATCH_SECRET_KEY to `openssl rand -base64 32`; stored secrets need the key that they were stored under"
    )
    if key is None:
        if settings.embedded:
            return ok("secret key", "none yet: the server's first start makes it")
        return failed("secret key", "PAYWATCH_SECRET_KEY is not set", make_one)
    if len(key) < SECRET_KEY_CHARS:
        return failed("secret key", f"it has {len(key)} characters, of {SECRET_KEY_CHARS} at least", make_one)
    if len(set(key)) < _DISTINCT_CHARS:
        return warning("secret key", f"it has only {len(set(key))} different characters: it can be guessed", make_one)
    return ok("secret key", f"{len(key)} characters")


def _permissions(settings: Settings) -> list[Finding]:
    found: list[Finding] = []
    for path, told in _private_files(settings):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            if path == settings.keystore_file:
                remedy = "give back the keystore, or set PAYWATCH_XPUB alone"
                found.append(failed(f"file:{path.name}", f"{path} is not there", remedy))
            continue
        if mode & 0o077:
            what = f"{path} has mode {mode:o}: others can read it"
            found.append(told(f"file:{path.name}", what, f"chmod 600 {path}"))
        else:
            found.append(ok(f"file:{path.name}", f"mode {mode:o}"))
    return found


def _private_files(settings: Settings) -> Iterator[tuple[Path, Callable[[str, str, str], Finding]]]:
    """Files that are nobody else's, and how bad it is when they are: containers mount secrets for all of their users,
    and SQLite's file holds customers' payments, its secrets encrypted.
    """
    if settings.embedded and settings.secret_key is None:
        yield settings.secret_key_file, failed
    if settings.keystore_file is not None:
        yield settings.keystore_file, failed
    secrets = [f"{ENV_PREFIX}{name.upper()}" for name in FROM_FILES if name != "xpub"]
    env_file = Path(".env")
    if env_file.is_file() and any(dotenv_values(env_file).get(name) for name in secrets):
        yield env_file, failed
    environment = read_environment()
    for name in secrets:
        if environment.get(f"{name}_FILE"):
            yield Path(environment[f"{name}_FILE"]), warning
    database = make_url(settings.database_url)
    if database.drivername.startswith("sqlite") and database.database:
        path = Path(database.database)
        if path.is_file() and path.parent.stat().st_mode & 0o011:  # else nobody gets that far
            yield path, warning


def _private_key(settings: Settings) -> Finding:
    if settings.embedded or not settings.has_private_key:
        return ok(
            "private key", "none here" if not settings.has_private_key else "embedded: one machine, one trust domain"
        )
    return warning(
        "private key",
        "this machine's settings hold a private key: right for the sweeper alone, and the API server refuses to start",
        "on the API's host set PAYWATCH_XPUB and remove PAYWATCH_MNEMONIC and PAYWATCH_KEYSTORE_FILE",
    )


def secret_key(settings: Settings) -> str | None:
    """The key as it is configured or kept; nothing is made."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value()
    try:
        return settings.secret_key_file.read_text(encoding="utf-8").strip() if settings.embedded else None
    except (OSError, UnicodeDecodeError):
        return None


def _embedded_redis(settings: Settings) -> str:
    """Where the running server's own Redis listens; empty when no server runs here."""
    try:
        return Path(settings.redis_url_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""

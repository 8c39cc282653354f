"""Goal: a bundle holds what an escalation needs, and no secret of those that stand everywhere around it."""

import json
import tarfile
from pathlib import Path

import pytest

from app.core.errors import ConfigError
from app.services.doctor import admit, examine
from app.services.doctor.bundle import write_bundle
from tests.services.doctor.conftest import System

PLANTED = {
    "database password": "planted-pg-Hx5dPw",
    "redis password": "planted-redis-9Kq",
    "words": "legal winner thank year wave sausage worth useful legal winner thank yellow",
    "keystore password": "planted correct horse battery",
    "api key": "planted-api-key-K2v8Qm",
    "other api key": "pwk_plantedT7xWc1Ld6aaBBccDD",
    "webhook secret": "whsec_cGxhbnRlZC1zaWduaW5nLXNlY3JldC0xMjM0NTY3",
    "secret key": "planted-Vn3kS8pYb5hJq0tGf9uXd2mRa7wZc4L6",
    "rpc key in a path": "planted8rpc8key8in8a8path",
    "rpc key in a query": "planted8rpc8key8in8a8query",
    "ws key": "planted8ws8key8in8a8path",
    "rpc user": "planted8rpc8user8password",
}
LOG = f"""\
{{"event": "node not reachable", "endpoint": "https://node.example.com/v3/{PLANTED["rpc key in a path"]}"}}
{{"event": "x", "api_key": "{PLANTED["api key"]}", "secret": "{PLANTED["secret key"]}"}}
{{"event": "y", "mnemonic": "{PLANTED["words"]}"}}
2026-11-21 plain line: connecting to postgresql+asyncpg://paywatch:{PLANTED["database password"]}@db/paywatch failed
Authorization: Bearer {PLANTED["other api key"]}
somebody printed {PLANTED["keystore password"]} and {PLANTED["webhook secret"]} and {PLANTED["redis password"]}
words: {PLANTED["words"]}; bare: {PLANTED["rpc key in a query"]}
{{"event": "chain ready", "chain": "devnet"}}
"""
CHAINS = """\
chains:
  - name: devnet
    chain_id: 31337
    rpc_urls:
      - "http://127.0.0.1:1/v3/{path}"
      - "http://user:{user}@127.0.0.1:1/?apikey={query}"
    ws_url: "ws://127.0.0.1:1/{ws}"
    tokens: []
"""


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        files = {member.name.removeprefix("paywatch-doctor/"): archive.extractfile(member) for member in archive}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


@pytest.fixture
def planted(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an installation whose every secret is known; production's secrets, and nothing listens for it."""
    folder = tmp_path / "installation"
    folder.mkdir()
    monkeypatch.chdir(folder)
    keys = {"path": "rpc key in a path", "user": "rpc user", "query": "rpc key in a query", "ws": "ws key"}
    (folder / "chains.yaml").write_text(CHAINS.format(**{name: PLANTED[key] for name, key in keys.items()}))
    (folder / "gateway.log").write_text(LOG)
    (folder / "password").write_text(PLANTED["keystore password"])
    (folder / ".env").write_text(
        f"PAYWATCH_API_KEY={PLANTED['api key']}\nPAYWATCH_SECRET_KEY={PLANTED['secret key']}\n"
        f"PAYWATCH_KEYSTORE_PASSWORD_FILE={folder / 'password'}\n"
    )
    monkeypatch.setenv("PAYWATCH_DATABASE_URL", system.settings.database_url)
    monkeypatch.setenv("PAYWATCH_REDIS_URL", f"redis://:{PLANTED['redis password']}@127.0.0.1:1/0")
    monkeypatch.setenv("PAYWATCH_MNEMONIC", PLANTED["words"])
    monkeypatch.setenv("PAYWATCH_WEBHOOK_SECRET", PLANTED["webhook secret"])
    return folder


async def pack(folder: Path, log: Path | None) -> dict[str, str]:
    patient, findings = admit()
    assert patient is not None
    try:
        findings += await examine(patient)
        await write_bundle(folder / "bundle.tar.gz", log, patient, findings)
    finally:
        await patient.context.close()
    return unpacked(folder / "bundle.tar.gz")


async def test_a_bundle_holds_what_an_escalation_needs(system: System, planted: Path) -> None:
    files = await pack(planted, planted / "gateway.log")
    assert (planted / "bundle.tar.gz").stat().st_mode & 0o777 == 0o600
    assert {finding["check"] for finding in json.loads(files["doctor.json"])} >= {"redis", "rpc:devnet#0", "amounts"}
    settings = json.loads(files["settings.json"])
    assert (settings["api_key"], settings["redis_url"]) == ("[redacted]", "redis://127.0.0.1:1")
    [chain] = json.loads(files["chains.json"])
    assert chain["rpc_urls"] == ["http://127.0.0.1:1", "http://127.0.0.1:1"]
    state = json.loads(files["state.json"])
    assert state["payments"] == {"confirmed": 1, "pending": 1}
    assert [each["type"] for each in state["last_events"]].count("payment.created") == 2
    [cursor] = state["chain_states"]
    assert (cursor["name"], cursor["last_scanned_block"]) == ("devnet", (await system.watch.state()).last_scanned_block)
    assert files["schema.txt"] == "at head, and equal to the models"
    assert json.loads(files["versions.json"])["paywatch"] == "0.1.0"
    assert '"event": "chain ready"' in files["log.txt"]
    assert "https://node.example.com" in files["log.txt"]


async def test_a_bundle_over_another_file_is_as_private(planted: Path) -> None:
    """And one over a link is not written: what it points to is somebody else's."""
    bundle = planted / "bundle.tar.gz"
    bundle.write_text("x" * 1_000_000)
    bundle.chmod(0o644)
    assert "doctor.json" in await pack(planted, None)
    assert bundle.stat().st_mode & 0o777 == 0o600
    assert bundle.stat().st_size < 1_000_000
    bundle.unlink()
    bundle.symlink_to(planted / "elsewhere")
    with pytest.raises(ConfigError, match=r"--bundle .*cannot be written"):
        await pack(planted, None)
    assert not (planted / "elsewhere").exists()


async def test_no_secret_is_in_a_bundle(planted: Path) -> None:
    files = await pack(planted, planted / "gateway.log")
    everything = "\n".join(files.values()).replace("\\n", "\n")
    assert {name: secret for name, secret in PLANTED.items() if secret in everything} == {}
    assert files["log.txt"].count("[redacted]") >= 8


async def test_no_secret_is_in_a_bundle_of_a_broken_installation(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong password in a URL, a setting that is wrong, and a chains.yaml that does not load."""
    password = PLANTED["database password"]
    monkeypatch.setenv("PAYWATCH_DATABASE_URL", f"postgresql+asyncpg://paywatch:{password}@127.0.0.1:1/paywatch")
    monkeypatch.setenv("PAYWATCH_PORT", PLANTED["words"])
    (planted / "chains.yaml").write_text(f"chains:\n  - rpc_url: [{PLANTED['rpc key in a path']}]\n")
    (planted / "gateway.log").write_text(LOG.replace(PLANTED["rpc key in a query"], ""))
    files = await pack(planted, planted / "gateway.log")
    everything = "\n".join(files.values())
    assert {name: secret for name, secret in PLANTED.items() if secret in everything} == {}
    failed = {each["check"] for each in json.loads(files["doctor.json"]) if each["result"] == "failed"}
    assert failed >= {"settings", "chains.yaml", "database", "redis"}


async def test_a_bundle_that_cannot_be_made_says_why(planted: Path) -> None:
    with pytest.raises(ConfigError, match=r"--log .*cannot be read"):
        await pack(planted, planted / "missing.log")
    patient, findings = admit()
    assert patient is not None
    with pytest.raises(ConfigError, match=r"--bundle .*cannot be written"):
        await write_bundle(planted / "nowhere" / "bundle.tar.gz", None, patient, findings)
    await patient.context.close()

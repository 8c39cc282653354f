"""Goal: settings come from where the operator put them; secrets are used unwrapped, never shown; mistakes are named."""

import base64
from ipaddress import ip_network
from pathlib import Path

import pytest

from app.core.config import (
    RequestRate,
    Settings,
    load_settings,
    read_environment,
)
from app.core.errors import ConfigError

MNEMONIC = "test test test test test test test test test test test junk"
XPUB = "xpub6Cexample"
SECRET_KEY = "0123456789abcdef0123456789abcdef"
REDIS = "redis://:redispass@localhost:6379/0"

pytestmark = pytest.mark.usefixtures("empty_environment")


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"PAYWATCH_{name}", value)
    return load_settings()


def test_without_any_variable_the_designs_defaults_hold() -> None:
    plain = load_settings()
    assert plain.database_url == "sqlite+aiosqlite:///./data/paywatch.db"
    assert plain.embedded
    assert plain.chains_file == Path("chains.yaml")
    assert (plain.host, plain.port, plain.effective_public_url) == ("127.0.0.1", 8000, "http://127.0.0.1:8000")
    assert plain.request_rate == RequestRate(200, 1)
    assert plain.trusted_proxies == plain.webhook_allow_networks == ()
    assert (plain.log_format, plain.log_level) == (None, "INFO")
    unset = (plain.mnemonic, plain.keystore_file, plain.keystore_password, plain.xpub, plain.api_key)
    assert {*unset, plain.webhook_secret, plain.secret_key, plain.public_url} == {None}


def test_a_mnemonic_is_unwrapped_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lesson of DESIGN section 10: a secret formatted while wrapped is the same asterisks for everybody."""
    found = settings(monkeypatch, MNEMONIC=f"  {MNEMONIC.replace(' ', '  ')} ")
    assert found.mnemonic is not None
    assert found.mnemonic.get_secret_value() == MNEMONIC
    assert str(found.mnemonic) != MNEMONIC


def test_settings_are_read_from_the_env_file_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text(
        f'PAYWATCH_PORT=9000\nPAYWATCH_HOST=::\nPAYWATCH_MNEMONIC="{MNEMONIC}"\nETHEREUM_RPC_URL=x\n'
    )
    found = settings(monkeypatch, PORT="9001")
    assert (found.port, found.host, found.effective_public_url) == (9001, "::", "http://[::1]:9001")
    assert found.mnemonic is not None
    assert found.mnemonic.get_secret_value() == MNEMONIC


def test_no_env_file_is_read_when_none_is_asked_for() -> None:
    Path(".env").write_text("PAYWATCH_PORT=9000\n")
    assert load_settings(None).port == 8000
    assert load_settings(Path("absent")).port == 8000


def test_empty_means_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("DATABASE_URL", "REDIS_URL", "PORT", "MNEMONIC", "SECRET_KEY", "XPUB", "LOG_FORMAT", "TRUSTED_PROXIES")
    found = settings(monkeypatch, **dict.fromkeys(names, " "))
    assert found == load_settings(None).model_copy()
    assert found.embedded
    assert found.mnemonic is None
    assert found.log_format is None


def test_an_empty_rate_limit_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(monkeypatch, RATE_LIMIT="").request_rate is None
    assert settings(monkeypatch, RATE_LIMIT="10/minute").request_rate == RequestRate(10, 60)


def test_an_empty_variable_hides_the_env_files_line(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text(f"PAYWATCH_REDIS_URL={REDIS}\n")
    assert not load_settings().embedded
    assert settings(monkeypatch, REDIS_URL="").embedded


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql+asyncpg://u:p@db/paywatch"),
        ("REDIS_URL", REDIS),
        ("MNEMONIC", MNEMONIC),
        ("KEYSTORE_PASSWORD", " p w "),
        ("XPUB", XPUB),
        ("API_KEY", "any string"),
        ("WEBHOOK_SECRET", "whsec_" + base64.b64encode(bytes(24)).decode()),
        ("SECRET_KEY", SECRET_KEY),
    ],
)
def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    Path("secret").write_text(value + "\n")
    found = getattr(settings(monkeypatch, **{f"{name}_FILE": "secret"}), name.lower())
    assert (found if isinstance(found, str) else found.get_secret_value()) == value


def test_a_secrets_file_may_be_named_in_the_env_file() -> None:
    Path("secret").write_text(MNEMONIC)
    Path(".env").write_text("PAYWATCH_MNEMONIC_FILE=secret\nPAYWATCH_MNEMONIC=\n")
    mnemonic = load_settings().mnemonic
    assert mnemonic is not None
    assert mnemonic.get_secret_value() == MNEMONIC


def test_a_secret_and_its_file_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("secret").write_text(SECRET_KEY)
    Path(".env").write_text("PAYWATCH_SECRET_KEY_FILE=secret\n")
    with pytest.raises(ConfigError, match="PAYWATCH_SECRET_KEY and PAYWATCH_SECRET_KEY_FILE are both set") as caught:
        settings(monkeypatch, SECRET_KEY=SECRET_KEY)
    assert SECRET_KEY not in str(caught.value)


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (b"\n", "empty"), (b"\xff", "UTF-8")])
def test_a_secrets_file_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, content: bytes | None, reason: str
) -> None:
    if content is not None:
        Path("secret").write_bytes(content)
    with pytest.raises(ConfigError, match=f"PAYWATCH_API_KEY_FILE: secret .*{reason}"):
        settings(monkeypatch, API_KEY_FILE="secret")


def test_keystore_file_and_chains_file_are_plain_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(monkeypatch, KEYSTORE_FILE="key.json", KEYSTORE_PASSWORD="p", CHAINS_FILE="/etc/chains.yaml")
    assert (found.keystore_file, found.chains_file) == (Path("key.json"), Path("/etc/chains.yaml"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PORT", "http", "integer"),
        ("PORT", "70000", "65535"),
        ("DATABASE_URL", "postgresql://u:hunter2@db/x", r"sqlite\+aiosqlite"),
        ("DATABASE_URL", "postgresql+asyncpg://u:pa@hunter2@db/x", "percent-encode the password"),
        ("DATABASE_URL", "postgresql+asyncpg://u:pa/hunter2@db/x", "percent-encode the password"),
        ("DATABASE_URL", "postgresql+asyncpg://u:12/hunter2@db/x", "percent-encode the password"),
        ("DATABASE_URL", "postgresql+asyncpg://u/v:hunter2@db/x", "percent-encode the password"),
        ("DATABASE_URL", "postgresql+asyncpg://u:pa#hunter2@db/x", "percent-encode the password"),
        ("DATABASE_URL", "postgresql+asyncpg://u:p@db:hunter2/x", "percent-encode the password"),
        ("DATABASE_URL", "postgresql+asyncpg://u:hunter2@db:70000/x", "percent-encode the password"),
        ("DATABASE_URL", "sqlite+aiosqlite://u:hunter2/x", "and a path"),
        ("REDIS_URL", "hunter2:6379", "redis://"),
        ("REDIS_URL", "redis://:pa@hunter2@redis/0", "percent-encode the password"),
        ("REDIS_URL", "redis://:12/hunter2@redis/0", "percent-encode the password"),
        ("REDIS_URL", "redis://:12?hunter2@redis/0", "percent-encode the password"),
        ("REDIS_URL", "redis://user:hunter2", "percent-encode the password"),
        ("REDIS_URL", "redis://:hunter2[@redis", "percent-encode the password"),
        ("REDIS_URL", "redis://:hunter2\u2100@redis", "percent-encode the password"),
        ("REDIS_URL", "redis://redis?socket_timeout=hunter2", "has an option"),
        ("PUBLIC_URL", "pay.example.com", "https://"),
        ("PUBLIC_URL", "https://pay.example.com/?a=1", "https://"),
        ("MNEMONIC", "hunter2 " * 11, "12, 15, 18, 21 or 24 words, and has 11"),
        ("XPUB", "xprvhunter2", "never a private one"),
        ("WEBHOOK_SECRET", "hunter2", "whsec_"),
        ("WEBHOOK_SECRET", "whsec_hunter2!", "base64"),
        ("WEBHOOK_SECRET", "whsec_aHVudGVyMg==", "24 to 64 bytes"),
        ("SECRET_KEY", "hunter2", "32 characters"),
        ("RATE_LIMIT", "fast", "200/second"),
        ("RATE_LIMIT", "0/second", "200/second"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,elsewhere", "elsewhere"),
        ("WEBHOOK_ALLOW_NETWORKS", "10.0.0.1/8", "host bits"),
        ("LOG_FORMAT", "xml", "console"),
        ("LOG_LEVEL", "loud", "INFO"),
    ],
)
def test_a_mistake_names_its_variable_and_hides_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^PAYWATCH_{name}: .*{message}") as caught:
        settings(monkeypatch, **{name: value})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql+asyncpg://u:p:q%40%2Fr@[::1]:5432/x?ssl=require"),
        ("DATABASE_URL", "postgresql+asyncpg://u@/x?host=/var/run/postgresql"),
        ("DATABASE_URL", "postgresql+asyncpg:///x"),
        ("DATABASE_URL", "postgresql+asyncpg://u:p@db_1.example-host/x"),
        ("DATABASE_URL", "sqlite+aiosqlite:////srv/a@b:c/paywatch.db"),
        ("DATABASE_URL", "sqlite+aiosqlite://"),
        ("REDIS_URL", "redis://redis"),
        ("REDIS_URL", "rediss://user:p%40ss@redis.example.com:6380/2?socket_timeout=3"),
        ("REDIS_URL", "unix:///run/redis.sock?db=1"),
        ("REDIS_URL", "unix://:pw@/run/redis.sock"),
    ],
)
def test_a_url_that_can_be_read_is_taken(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert getattr(settings(monkeypatch, **{name: value}), name.lower()) == value


def test_all_mistakes_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(monkeypatch, PORT="x", SECRET_KEY="short", LOG_LEVEL="loud")
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "PAYWATCH_PORT",
        "PAYWATCH_SECRET_KEY",
        "PAYWATCH_LOG_LEVEL",
    ]


def test_an_env_file_that_is_not_text_is_named() -> None:
    Path(".env").write_bytes(b"PAYWATCH_PORT=\xff\n")
    with pytest.raises(ConfigError, match=r"\.env: not UTF-8"):
        load_settings()


def test_no_secret_is_in_the_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(
        monkeypatch,
        DATABASE_URL="postgresql+asyncpg://u:dbpass@db/x",
        REDIS_URL=REDIS,
        MNEMONIC=MNEMONIC,
        KEYSTORE_PASSWORD="kspass",
        XPUB=XPUB,
        API_KEY="apikey1",
        SECRET_KEY=SECRET_KEY,
    )
    for secret in ("dbpass", "redispass", "junk", "kspass", XPUB, "apikey1", SECRET_KEY):
        assert secret not in repr(found)
        assert secret not in str(found)


def test_networks_are_lists_of_cidrs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(monkeypatch, TRUSTED_PROXIES="10.0.0.0/8, ::1 ,", WEBHOOK_ALLOW_NETWORKS="127.0.0.0/8")
    assert found.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert found.webhook_allow_networks == (ip_network("127.0.0.0/8"),)


def test_names_of_levels_and_formats_may_be_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(monkeypatch, LOG_LEVEL="debug", LOG_FORMAT="JSON")
    assert (found.log_level, found.log_format) == ("DEBUG", "json")


def test_the_public_url_is_the_given_one_without_a_trailing_slash(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        settings(monkeypatch, PUBLIC_URL="https://pay.example.com/").effective_public_url == "https://pay.example.com"
    )


def test_a_server_bound_to_every_address_is_reached_at_the_local_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(monkeypatch, HOST="0.0.0.0").effective_public_url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("database_url", "redis_url", "data_dir"),
    [
        ("sqlite+aiosqlite:///./data/paywatch.db", "", "data"),
        ("sqlite+aiosqlite:////var/lib/paywatch/p.db?timeout=5", "", "/var/lib/paywatch"),
        ("sqlite+aiosqlite:///:memory:", "", "data"),
        ("sqlite+aiosqlite://", "", "data"),
        ("sqlite+aiosqlite:////elsewhere/p.db", REDIS, "data"),
        ("postgresql+asyncpg://u:p@db/x", "", "data"),
    ],
)
def test_the_data_directory_is_beside_the_embedded_database(
    monkeypatch: pytest.MonkeyPatch, database_url: str, redis_url: str, data_dir: str
) -> None:
    assert settings(monkeypatch, DATABASE_URL=database_url, REDIS_URL=redis_url).data_dir == Path(data_dir)


def test_two_wallets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="both set"):
        settings(monkeypatch, MNEMONIC=MNEMONIC, KEYSTORE_FILE="k", KEYSTORE_PASSWORD="p")


def test_a_keystore_without_its_password_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="without PAYWATCH_KEYSTORE_PASSWORD"):
        settings(monkeypatch, KEYSTORE_FILE="k")


def test_a_server_without_a_wallet_names_the_command_that_makes_one() -> None:
    with pytest.raises(ConfigError, match="paywatch keys init"):
        load_settings().check_server()


@pytest.mark.parametrize(
    "wallet", [{"MNEMONIC": MNEMONIC}, {"KEYSTORE_FILE": "k", "KEYSTORE_PASSWORD": "p"}, {"XPUB": XPUB}]
)
def test_an_embedded_server_takes_any_wallet(monkeypatch: pytest.MonkeyPatch, wallet: dict[str, str]) -> None:
    settings(monkeypatch, **wallet).check_server()


@pytest.mark.parametrize(
    "wallet", [{"MNEMONIC": MNEMONIC, "XPUB": XPUB}, {"KEYSTORE_FILE": "k", "KEYSTORE_PASSWORD": "p"}]
)
def test_a_production_server_refuses_a_private_key(monkeypatch: pytest.MonkeyPatch, wallet: dict[str, str]) -> None:
    found = settings(monkeypatch, REDIS_URL=REDIS, SECRET_KEY=SECRET_KEY, **wallet)
    with pytest.raises(ConfigError, match="API host must not hold a private key"):
        found.check_server()


def test_a_production_server_takes_an_xpub(monkeypatch: pytest.MonkeyPatch) -> None:
    settings(monkeypatch, REDIS_URL=REDIS, SECRET_KEY=SECRET_KEY, XPUB=XPUB).check_server()


def test_production_requires_a_secret_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(monkeypatch, REDIS_URL=REDIS, XPUB=XPUB)
    for check in (found.require_production, found.check_server, lambda: found.check_worker({"listener"})):
        with pytest.raises(ConfigError, match="PAYWATCH_SECRET_KEY is required"):
            check()


def test_in_production_only_the_sweepers_worker_may_hold_a_private_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(monkeypatch, REDIS_URL=REDIS, SECRET_KEY=SECRET_KEY, MNEMONIC=MNEMONIC)
    found.check_worker(["listener", "sweeper"])
    with pytest.raises(ConfigError, match="remove PAYWATCH_MNEMONIC from the worker with --roles listener,webhook"):
        found.check_worker(["listener", "webhook"])


def test_a_worker_without_a_wallet_may_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    settings(monkeypatch, REDIS_URL=REDIS, SECRET_KEY=SECRET_KEY).check_worker(["listener", "webhook"])


def test_the_environment_for_chains_yaml_includes_the_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("ETHEREUM_RPC_URL=https://file\nBASE_RPC_URL=https://file\n")
    monkeypatch.setenv("BASE_RPC_URL", "https://process")
    found = read_environment()
    assert (found["ETHEREUM_RPC_URL"], found["BASE_RPC_URL"]) == ("https://file", "https://process")


def test_the_example_env_file_names_every_variable_and_sets_none() -> None:
    example = (Path(__file__).parents[2] / ".env.example").read_text()
    for name in Settings.model_fields:
        assert f"\n#PAYWATCH_{name.upper()}=" in example
    assert all(line == "" or line.startswith("#") for line in example.splitlines())

"""Settings: the environment, `.env` and secret files (DESIGN section 8), read once, checked for the process at hand."""

import base64
import binascii
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from redis.asyncio.connection import parse_url

from app.core.connection_url import require_readable
from app.core.errors import ConfigError
from app.core.secret_files import ENV_PREFIX, SecretFileSource

SECRET_KEY_CHARS: Final = 32

_VERBATIM: Final = ("keystore_password", "secret_key")  # any string: its blanks are its own
_SQLITE: Final = re.compile(r"sqlite\+aiosqlite://(?:[/?]|$)")
_RATE: Final = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")
_PERIOD_S: Final = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_WEBHOOK_SECRET_BYTES: Final = range(24, 65)  # Standard Webhooks 1.0, "Signature scheme"

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class RequestRate:
    """How many `requests` one caller may make in `period_s` seconds."""

    requests: int
    period_s: int


def _networks(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(ip_network(part.strip()) for part in value.split(",") if part.strip())


Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)]


class Settings(BaseSettings):
    """Every `PAYWATCH_` variable of DESIGN section 8. Empty means unset, but for RATE_LIMIT, where it means none.

    Secrets are SecretStr: unwrap with `.get_secret_value()` before any use, for `str()` of one is asterisks and a key
    derived from asterisks is the same for everybody. `database_url`, `redis_url` and `xpub` are plain text that is kept
    out of `repr`, as they may hold a password or give away every address.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",  # `.env` also holds the ${VARIABLES} of chains.yaml
        frozen=True,
        hide_input_in_errors=True,
    )

    database_url: str = Field("sqlite+aiosqlite:///./data/paywatch.db", repr=False)
    redis_url: str = Field("", repr=False)
    chains_file: Path = Path("./chains.yaml")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65_535)
    metrics_port: int | None = Field(None, ge=1, le=65_535)
    public_url: str | None = None
    mnemonic: SecretStr | None = None
    keystore_file: Path | None = None
    keystore_password: SecretStr | None = None
    xpub: str | None = Field(None, repr=False)
    api_key: SecretStr | None = None
    webhook_secret: SecretStr | None = None
    secret_key: SecretStr | None = None
    rate_limit: str = "200/second"
    trusted_proxies: Networks = ()
    webhook_allow_networks: Networks = ()
    log_format: Literal["console", "json"] | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        variables: dict[str, str | None] = {}
        for source in (dotenv_settings, env_settings):  # the process's environment has the last word
            if isinstance(source, EnvSettingsSource):
                variables.update(source.env_vars)
        return init_settings, SecretFileSource(settings_cls, variables), env_settings, dotenv_settings

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, value in values.items():
            text = value.strip() if isinstance(value, str) else value
            if text != "" or name == "rate_limit":
                kept[name] = value if name in _VERBATIM else text
        return kept

    @field_validator("log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if not value.startswith(("sqlite+aiosqlite://", "postgresql+asyncpg://")):
            raise ValueError("must begin with sqlite+aiosqlite:// or postgresql+asyncpg://")
        if value.startswith("sqlite"):
            if _SQLITE.match(value) is None:
                raise ValueError("must be sqlite+aiosqlite:/// and a path, which may begin with a fourth /")
        else:
            require_readable(value)
        return value

    @field_validator("redis_url")
    @classmethod
    def _known_redis(cls, value: str) -> str:
        if value and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        if value:
            require_readable(value)
            _require_redis_options(value)
        return value

    @field_validator("public_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be an http:// or https:// address such as https://pay.example.com")
        return value.rstrip("/")

    @field_validator("mnemonic")
    @classmethod
    def _mnemonic_length(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        words = value.get_secret_value().split()
        if len(words) not in (12, 15, 18, 21, 24):  # BIP-39; its checksum is for the wallet, which has the word list
            raise ValueError(f"must be 12, 15, 18, 21 or 24 words, and has {len(words)}")
        return SecretStr(" ".join(words))

    @field_validator("xpub")
    @classmethod
    def _public_only(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("xpub"):
            raise ValueError("must be an extended public key (xpub…) of the account m/44'/60'/0'; never a private one")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _standard_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        prefix, _, encoded = value.get_secret_value().partition("_")
        try:
            size = len(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            size = 0
        if prefix != "whsec" or size not in _WEBHOOK_SECRET_BYTES:
            raise ValueError("must be whsec_ and base64 of 24 to 64 bytes (Standard Webhooks)")
        return value

    @field_validator("secret_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < SECRET_KEY_CHARS:
            raise ValueError(f"must have {SECRET_KEY_CHARS} characters or more")
        return value

    @field_validator("rate_limit")
    @classmethod
    def _known_rate(cls, value: str) -> str:
        if value and _RATE.fullmatch(value) is None:
            raise ValueError("must be such as 200/second (or minute, hour, day), or empty for no limit")
        return value

    def model_post_init(self, _context: Any, /) -> None:
        """Raises ConfigError for two wallets, or half of one."""
        if self.mnemonic is not None and self.keystore_file is not None:
            raise ConfigError("PAYWATCH_MNEMONIC and PAYWATCH_KEYSTORE_FILE are both set; keep one of them")
        if self.keystore_file is not None and self.keystore_password is None:
            raise ConfigError("PAYWATCH_KEYSTORE_FILE is set without PAYWATCH_KEYSTORE_PASSWORD")

    @property
    def embedded(self) -> bool:
        """One machine, one process tree: no REDIS_URL, so Redis and the worker run inside the server."""
        return not self.redis_url

    @property
    def has_private_key(self) -> bool:
        """Whether a mnemonic or a keystore is configured."""
        return self.mnemonic is not None or self.keystore_file is not None

    @property
    def effective_public_url(self) -> str:
        """Where customers reach this server, without a trailing slash: PUBLIC_URL, or derived from HOST and PORT."""
        if self.public_url is not None:
            return self.public_url
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def request_rate(self) -> RequestRate | None:
        """RATE_LIMIT as numbers; None when there is no limit."""
        match = _RATE.fullmatch(self.rate_limit)
        return RequestRate(int(match[1]), _PERIOD_S[match[2]]) if match else None

    @property
    def data_dir(self) -> Path:
        """Where an installation keeps its own files: beside the SQLite database when embedded, else `./data`."""
        scheme, _, location = self.database_url.partition(":///")
        path = location.partition("?")[0].removeprefix("file:")
        if not self.embedded or not scheme.startswith("sqlite") or path in ("", ":memory:"):
            return Path("data")
        return Path(path).parent

    @property
    def redis_url_file(self) -> Path:
        """Where a running embedded server tells the URL of its own Redis."""
        return self.data_dir / "redis.url"

    @property
    def secret_key_file(self) -> Path:
        """Where embedded mode keeps the secret key that it made."""
        return self.data_dir / "secret.key"

    def require_production(self) -> None:
        """Raises ConfigError when production (REDIS_URL set) lacks what embedded mode would make for itself."""
        if not self.embedded and self.secret_key is None:
            raise ConfigError(
                f"PAYWATCH_SECRET_KEY is required with PAYWATCH_REDIS_URL: set {SECRET_KEY_CHARS} or more random "
                "characters, the same for the server and every worker"
            )

    def check_server(self) -> None:
        """Raises ConfigError when the API server must not start with these settings."""
        if not self.embedded and self.has_private_key:
            raise ConfigError(
                "the API host must not hold a private key: in production give the server PAYWATCH_XPUB alone, and "
                f"{self._private_key_variable} only to the worker with the sweeper's role"
            )
        if not self.has_private_key and self.xpub is None:
            raise ConfigError(
                "no wallet is configured: run `paywatch keys init` to make one, or set PAYWATCH_XPUB (watching only), "
                "PAYWATCH_MNEMONIC, or PAYWATCH_KEYSTORE_FILE with PAYWATCH_KEYSTORE_PASSWORD"
            )
        self.require_production()

    def check_worker(self, roles: Collection[str]) -> None:
        """Raises ConfigError when a worker with these `roles` (listener, webhook, sweeper) must not start.

        In production only a process with the sweeper's role may hold a private key.
        """
        if not self.embedded and self.has_private_key and "sweeper" not in roles:
            raise ConfigError(
                f"a worker without the sweeper's role must not hold a private key: remove {self._private_key_variable} "
                f"from the worker with --roles {','.join(roles)}"
            )
        self.require_production()

    @property
    def _private_key_variable(self) -> str:
        return "PAYWATCH_MNEMONIC" if self.mnemonic is not None else "PAYWATCH_KEYSTORE_FILE"


def load_settings(env_file: Path | None = Path(".env")) -> Settings:
    """The process's settings; `env_file` may be absent, and the environment wins over it.

    Raises ConfigError with one line for each wrong variable, naming it and what is wrong, never its value.
    """
    try:
        return Settings(_env_file=env_file)
    except ValidationError as error:
        problems = [_describe(problem["loc"], problem["msg"]) for problem in error.errors(include_input=False)]
        raise ConfigError("\n".join(problems)) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{env_file}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{env_file}: cannot be read: {error.strerror}") from None


def load_what_loads(env_file: Path | None = Path(".env")) -> tuple[Settings | None, str | None]:
    """The settings and what is wrong with them, for whoever looks for the fault; wrong ones have their defaults.

    None when nothing of them can be relied on.
    """
    try:
        return load_settings(env_file), None
    except ConfigError as error:
        problem = str(error)
    wrong = {line.partition(":")[0].removeprefix(ENV_PREFIX).lower() for line in problem.splitlines()}
    fields = {name: field.default for name, field in Settings.model_fields.items() if name in wrong}
    # Two wallets, or half of one, are told without the name of a field.
    fields |= dict.fromkeys(("mnemonic", "keystore_file", "keystore_password"), None) if not fields else {}
    try:
        return Settings(_env_file=env_file, **fields), problem
    except (ConfigError, ValidationError, UnicodeDecodeError, OSError):
        return None, problem


def read_environment(env_file: Path | None = Path(".env")) -> dict[str, str]:
    """The environment over `env_file`, as `load_settings` sees them: what chains.yaml's `${VARIABLES}` stand for."""
    from_file = dotenv_values(env_file, encoding="utf-8") if env_file is not None and env_file.is_file() else {}
    return {name: value for name, value in from_file.items() if value is not None} | dict(os.environ)


def _require_redis_options(url: str) -> None:
    """Raises ValueError for options whose values the client would refuse."""
    try:
        parse_url(url)
    except (TypeError, ValueError):
        raise ValueError("has an option (after its ?) that Redis' client does not take") from None


def _describe(location: tuple[int | str, ...], message: str) -> str:
    name = f"{ENV_PREFIX}{location[0]!s}".upper() if location else "settings"
    return f"{name}: {message.removeprefix('Value error, ')}"

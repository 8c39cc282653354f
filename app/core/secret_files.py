"""Secrets from files: `PAYWATCH_X_FILE` names the file that holds what `PAYWATCH_X` would, as containers mount it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from app.core.errors import ConfigError

ENV_PREFIX: Final = "PAYWATCH_"

# What may come from `PAYWATCH_<NAME>_FILE`. CHAINS_FILE and KEYSTORE_FILE are settings of their own, not such a form.
FROM_FILES: Final = (
    "database_url",
    "redis_url",
    "mnemonic",
    "keystore_password",
    "xpub",
    "api_key",
    "webhook_secret",
    "secret_key",
)


class SecretFileSource(PydanticBaseSettingsSource):
    """Reads `PAYWATCH_X_FILE` for each secret X, and refuses X and X_FILE together."""

    def __init__(self, settings_cls: type[BaseSettings], variables: Mapping[str, str | None]) -> None:
        super().__init__(settings_cls)
        self._variables = variables

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = f"{ENV_PREFIX}{field_name.upper()}"
        path = self._variables.get(f"{name}_FILE".lower())
        if field_name not in FROM_FILES or not path:
            return None, field_name, False
        if self._variables.get(name.lower()):
            raise ConfigError(f"{name} and {name}_FILE are both set; keep one of them")
        try:
            text = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"{name}_FILE: {path} cannot be read: {reason}") from None
        if not text:
            raise ConfigError(f"{name}_FILE: {path} is empty")
        return text, field_name, False

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields.items()
        found = {name: self.get_field_value(field, name)[0] for name, field in fields}
        return {name: value for name, value in found.items() if value is not None}

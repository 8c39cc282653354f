"""The installation's secret key: configured, or in embedded mode made once and kept in a file."""

import os
import secrets
from pathlib import Path

from app.core.config import SECRET_KEY_CHARS, Settings
from app.core.errors import ConfigError


def load_or_create_secret_key(settings: Settings) -> str:
    """The key for `SecretBox`: SECRET_KEY, or embedded the data directory's `secret.key`, made once with mode 0600.

    Raises ConfigError in production without SECRET_KEY, and for a file that cannot be read or is damaged.
    """
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value()
    settings.require_production()
    path = settings.secret_key_file
    try:
        if not path.exists():
            _create_once(path, secrets.token_urlsafe(48))
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the secret key cannot be kept there: {error}") from None
    if len(key) < SECRET_KEY_CHARS:
        raise ConfigError(f"{path}: damaged, a key has {SECRET_KEY_CHARS} characters or more; restore it from a backup")
    return key


def _create_once(path: Path, text: str) -> None:
    """Write a 0600 file that is either absent or whole, and that a second process starting beside us cannot replace."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename, fails when the other process was first
    except FileExistsError:
        pass
    finally:
        draft.unlink()

"""Secrets: encrypted at rest, hashed when only compared, and made from the system's randomness."""

import base64
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.core.clock import rfc3339
from app.core.errors import PaywatchError


class WrongSecretKey(PaywatchError):  # noqa: N818
    """Stored ciphertext that the configured key does not open: the key was changed, or the data was."""

    code = "wrong_secret_key"
    title = "Stored secret cannot be decrypted"


class SecretBox:
    """Authenticated encryption (Fernet: AES-128-CBC with HMAC-SHA256) under a key derived from PAYWATCH_SECRET_KEY.

    HKDF-SHA256 (RFC 5869) makes 32 bytes of any string; the string itself must carry the entropy, for HKDF adds none.
    """

    def __init__(self, secret_key: str) -> None:
        # These bytes are part of every ciphertext's key: changing them loses all that is stored.
        hkdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"paywatch secret box v1")
        self._fernet = Fernet(base64.urlsafe_b64encode(hkdf.derive(secret_key.encode())))

    def encrypt(self, text: str) -> bytes:
        """The ciphertext of `text`, another one each time."""
        return self._fernet.encrypt(text.encode())

    def decrypt(self, data: bytes) -> str:
        """The text that `encrypt` was given. Raises WrongSecretKey when the key or the data is another."""
        try:
            return self._fernet.decrypt(data).decode()
        except InvalidToken:
            raise WrongSecretKey(
                "a stored secret cannot be decrypted: PAYWATCH_SECRET_KEY (or data/secret.key) is not the key "
                "it was encrypted with"
            ) from None


def hash_api_key(key: str) -> bytes:
    """SHA-256 of an API key, 32 bytes: what is stored and looked up. Plain, as a made key holds 256 random bits."""
    return hashlib.sha256(key.encode()).digest()


def new_api_key() -> str:
    """A fresh API key: `pwk_` and 32 random bytes, URL-safe."""
    return "pwk_" + secrets.token_urlsafe(32)


def new_webhook_secret() -> str:
    """A fresh signing secret as Standard Webhooks 1.0 lays down: `whsec_` and base64 of 24 random bytes."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


def rotated(current: bytes, old: Sequence[Mapping[str, str]], now: datetime, until: datetime) -> list[dict[str, str]]:
    """The old secrets, newest first, after `current` (encrypted) was replaced: each signs `until` its own end."""
    kept = [dict(one) for one in old if one["until"] > rfc3339(now)]
    return [{"secret": current.decode(), "until": rfc3339(until)}, *kept]


def signing_secrets(current: bytes, old: Sequence[Mapping[str, str]], now: datetime) -> list[bytes]:
    """The encrypted secrets that sign now: the current one first, then the old ones whose time has not ended."""
    return [current, *(one["secret"].encode() for one in old if one["until"] > rfc3339(now))]

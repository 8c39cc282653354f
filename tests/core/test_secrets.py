"""Goal: stored secrets open with their own key alone, and made ones have the form that others expect."""

import base64
import hashlib

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.core.errors import PaywatchError
from app.core.secrets import SecretBox, WrongSecretKey, hash_api_key, new_api_key, new_webhook_secret

KEY = "correct horse battery staple, and then some"


def test_what_was_encrypted_is_decrypted_by_another_box_with_the_same_key() -> None:
    ciphertext = SecretBox(KEY).encrypt("whsec_ü")
    assert b"whsec" not in ciphertext
    assert SecretBox(KEY).decrypt(ciphertext) == "whsec_ü"


def test_the_same_text_never_encrypts_alike() -> None:
    box = SecretBox(KEY)
    assert box.encrypt("x") != box.encrypt("x")


@pytest.mark.parametrize("key", [KEY + ".", "*" * 10, ""])
def test_another_key_is_a_clear_error_that_holds_neither_key_nor_text(key: str) -> None:
    with pytest.raises(WrongSecretKey, match="PAYWATCH_SECRET_KEY") as caught:
        SecretBox(key).decrypt(SecretBox(KEY).encrypt("hidden"))
    assert isinstance(caught.value, PaywatchError)
    assert "hidden" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_damaged_data_is_the_same_error() -> None:
    damaged = bytearray(SecretBox(KEY).encrypt("x"))
    damaged[20] ^= 1
    with pytest.raises(WrongSecretKey):
        SecretBox(KEY).decrypt(bytes(damaged))


def test_the_derivation_never_changes() -> None:
    """A golden vector: what older versions stored must open for ever."""
    key = HKDF(SHA256(), 32, None, b"paywatch secret box v1").derive(KEY.encode())
    assert key.hex() == "3cfe2db7cd31133544fc1647d619990d9a14ad2bcf713a77cecc12397c08db50"
    ciphertext = Fernet(base64.urlsafe_b64encode(key)).encrypt(b"kept")
    assert SecretBox(KEY).decrypt(ciphertext) == "kept"


def test_api_keys_are_fresh_and_hashed_with_sha256() -> None:
    keys = {new_api_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("pwk_") and len(key) == 4 + 43 for key in keys)
    assert hash_api_key("pwk_x") == hashlib.sha256(b"pwk_x").digest()


def test_webhook_secrets_are_24_random_bytes_as_standard_webhooks_lays_down() -> None:
    prefix, _, encoded = new_webhook_secret().partition("_")
    assert prefix == "whsec"
    assert len(base64.b64decode(encoded, validate=True)) == 24
    assert new_webhook_secret() != new_webhook_secret()

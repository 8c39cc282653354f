"""The suite's secrets, and how those are known that are made while it runs.

tests/conftest.py looks for all of them in what every test prints and logs.
"""

import re
from typing import Any, Final

from hdwallet.mnemonics import BIP39Mnemonic

from app.blockchain.signer import SigningAccount

API_KEY: Final = "pwk_of_the_first_merchant"
SECRET_KEY: Final = "suite-Qb7mXw2kVd9rLc4tHy6sPz3nJf8gGu5e"
WEBHOOK_SECRET: Final = "whsec_c3VpdGUtc2lnbmluZy1zZWNyZXQtb2YtdGVzdHM="

# Test vector of BIP-39 with words that no log line has by chance.
MNEMONIC: Final = "legal winner thank year wave sausage worth useful legal winner thank yellow"
RPC_KEY: Final = "e2e-rpc-key-9fT3bQ"
DATABASE_PASSWORD: Final = "e2e-Hx5dPw"
E2E_API_KEY: Final = "pwk_e2e_K2v8Qm4TzR7xWc1Ld6"
E2E_WEBHOOK_SECRET: Final = "whsec_ZTJlLXNpZ25pbmctc2VjcmV0LW9mLXRoaXMtdGVzdA=="
E2E_SECRET_KEY: Final = "e2e-Vn3kS8pYb5hJq0tGf9uXd2mRa7wZc4L6"

SECRETS: Final = (
    *("sausage", "legal winner", RPC_KEY, DATABASE_PASSWORD),
    *(API_KEY, SECRET_KEY, WEBHOOK_SECRET.removeprefix("whsec_")),
    *(E2E_API_KEY, E2E_SECRET_KEY, E2E_WEBHOOK_SECRET.removeprefix("whsec_")),
)

_MADE: Final = re.compile(r"\bpwk_[\w-]{8,}|\bwhsec_[\w+/=-]{8,}|\b[xyztuv]prv[1-9A-HJ-NP-Za-km-z]{20,}")
_HEX: Final = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)
_PROSE: Final = re.compile(r"(?:\b[a-z]{3,8}\s+){11,}[a-z]{3,8}\b")
_WORDS: Final = frozenset(BIP39Mnemonic.get_words_list_by_language("english"))
_FEWEST_WORDS: Final = 12  # of a wallet's; no sentence has so many of the list in a row

_private_keys: set[str] = set()
_make_account = SigningAccount.__init__


def _note_key(account: SigningAccount, private_key: bytes) -> None:
    _private_keys.add(private_key.hex())
    _make_account(account, private_key)


def watch_private_keys() -> None:
    """From now on know every key that this process signs with."""
    made: Any = SigningAccount
    made.__init__ = _note_key


def find_secret(text: str) -> int:
    """Where in a text one of the suite's secrets stands, or what looks like one that was just made; -1 for nowhere."""
    for secret in SECRETS:
        if (at := text.find(secret)) >= 0:
            return at
    for match in _MADE.finditer(text):
        return match.start()
    for match in _HEX.finditer(text):
        if match[0].lower() in _private_keys:
            return match.start()
    for match in _PROSE.finditer(text):
        row = 0
        for word in match[0].split():
            row = row + 1 if word in _WORDS else 0
            if row == _FEWEST_WORDS:
                return match.start()
    return -1

"""What a new installation needs and nobody should have to invent: passwords, keys and a wallet, made once.

    python deploy/first_start.py SHARED API SWEEPER DATABASE

Four folders, each mounted by those who need it: SHARED by server and workers (database_url, secret_key), API by the
server (api_key, xpub), SWEEPER by the sweeper (keystore.json, keystore_password), DATABASE by PostgreSQL (password).
Run again it makes only what is not there, and never a second wallet: where one was lost, it says how it comes back.
"""

import os
import secrets
import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.blockchain.keystore import read_keystore
from app.blockchain.wallet import account_xpub
from app.services.wallet import new_wallet, store_wallet

USER_ID: Final = 10_001  # the Dockerfile's user
SECRET_BYTES: Final = 32

_MADE: Final = """\
A wallet was made. Write its recovery words on paper: docker compose run --rm sweeper paywatch keys words
The first merchant's API key: docker compose run --rm api cat /run/api/api_key"""
_LOST: Final = """\
No wallet was made: there is an extended public key without its keystore. Payments are watched; sweeping waits.
Put keystore.json and keystore_password back into the volume sweeper-key, or make the keystore from the words on paper:
  docker compose run --rm first-start paywatch keys init --words --keystore /run/sweeper/keystore.json
Then start anew."""
_OTHER: Final = (
    "keystore.json is not the wallet of xpub: money would go to addresses that it cannot sweep; put back what fits"
)


def main(shared: Path, api: Path, sweeper: Path, database: Path) -> None:
    """Make what is missing. Raises SystemExit when keystore and extended public key are of different wallets."""
    url = shared / "database_url"
    # A database keeps the password that it was made with, and the URL knows it too.
    known = (urlsplit(url.read_text()).password or "") if url.exists() else secrets.token_urlsafe(SECRET_BYTES)
    database_password = _once(database / "password", known, mode=0o444, owner=0)
    _once(url, f"postgresql+asyncpg://paywatch:{database_password}@postgres/paywatch")
    _once(shared / "secret_key", secrets.token_urlsafe(SECRET_BYTES))
    _once(api / "api_key", f"pwk_{secrets.token_urlsafe(SECRET_BYTES)}")
    password = _once(sweeper / "keystore_password", secrets.token_urlsafe(SECRET_BYTES))
    keystore, xpub = sweeper / "keystore.json", api / "xpub"
    if not keystore.exists():
        if xpub.exists():
            print(_LOST)
            return
        store_wallet(new_wallet(), keystore, SecretStr(password))
        print(_MADE)
    _own(keystore, 0o400, USER_ID)
    derived = account_xpub(read_keystore(keystore, password))
    if _once(xpub, derived) != derived:
        sys.exit(_OTHER)


def _once(path: Path, text: str, mode: int = 0o400, owner: int = USER_ID) -> str:
    """Write a file unless it is there; what it holds. A killed run leaves it whole or absent."""
    if not path.exists():
        draft = path.with_name(f".{path.name}.draft")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        _own(draft, mode, owner)
        draft.rename(path)
    return path.read_text().rstrip("\n")


def _own(path: Path, mode: int, owner: int) -> None:
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, owner, owner)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*(Path(argument) for argument in sys.argv[1:]))

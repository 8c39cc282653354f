"""HD addresses (BIP-32, BIP-39, BIP-44) through hdwallet."""

import hmac
import secrets

from coincurve import PublicKey
from eth_utils.crypto import keccak
from hdwallet import HDWallet
from hdwallet.cryptocurrencies import Ethereum
from hdwallet.derivations import CustomDerivation
from hdwallet.exceptions import Error
from hdwallet.hds import BIP32HD
from hdwallet.mnemonics import BIP39Mnemonic

from app.core.errors import ConfigError

ACCOUNT_PATH = "m/44'/60'/0'"
ACCOUNT_DEPTH = 3
NATIVE_BRANCH = 0
TOKEN_BRANCH = 1
MAX_INDEX = 2**31 - 1
ENTROPY_BYTES = 32  # 24 words


def new_mnemonic() -> str:
    """24 fresh recovery words (BIP-39, English), from the system's randomness."""
    return str(BIP39Mnemonic.from_entropy(secrets.token_bytes(ENTROPY_BYTES), "english"))


def from_mnemonic(mnemonic: str) -> HDWallet:
    """The wallet of recovery words, underived. Raises ConfigError for a bad mnemonic."""
    try:
        return HDWallet(cryptocurrency=Ethereum, hd=BIP32HD, network="mainnet").from_mnemonic(
            BIP39Mnemonic(" ".join(mnemonic.split()))
        )
    except Error:
        # Not chained: hdwallet's message may quote the words.
        raise ConfigError("PAYWATCH_MNEMONIC: not a valid BIP-39 mnemonic") from None


def account_xpub(mnemonic: str) -> str:
    """The extended public key of the deposit account `m/44'/60'/0'`. Raises ConfigError for a bad mnemonic."""
    return str(from_mnemonic(mnemonic).from_derivation(CustomDerivation(path=ACCOUNT_PATH)).xpublic_key())


class AddressDeriver:
    """Deposit addresses of an account-level xpub; no private key is involved.

    hdwallet derives the branches, once. The last step is CKDpub of BIP-32 with libsecp256k1: every payment takes it,
    and hdwallet needs a third of a millisecond where this needs a tenth of that.
    """

    def __init__(self, xpub: str) -> None:
        """Raises ConfigError unless `xpub` is an extended public key of depth 3."""
        account = _from_xpub(xpub)
        if account.depth() != ACCOUNT_DEPTH:
            raise ConfigError(f"PAYWATCH_XPUB: must be an account-level key, {ACCOUNT_PATH}")
        self._branches: dict[int, tuple[PublicKey, bytes, bytes]] = {}  # with its 33 bytes, and the chain code
        for branch in (NATIVE_BRANCH, TOKEN_BRANCH):
            wallet = _from_xpub(xpub).from_derivation(CustomDerivation(path=f"m/{branch}"))
            key = PublicKey(bytes.fromhex(str(wallet.public_key())))
            self._branches[branch] = key, key.format(), bytes.fromhex(str(wallet.chain_code()))

    def address(self, branch: int, index: int) -> bytes:
        """Address of `m/44'/60'/0'/branch/index`. Raises ValueError for an index outside 0 to 2**31 - 1."""
        if not 0 <= index <= MAX_INDEX:
            raise ValueError(f"HD index {index} is out of range")
        parent, parent_bytes, chain_code = self._branches[branch]
        tweak = hmac.digest(chain_code, parent_bytes + index.to_bytes(4, "big"), "sha512")[:32]
        return keccak(parent.add(tweak).format(compressed=False)[1:])[-20:]


def _from_xpub(xpub: str) -> HDWallet:
    try:
        return HDWallet(cryptocurrency=Ethereum, hd=BIP32HD, network="mainnet").from_xpublic_key(xpub, strict=False)
    except (Error, ValueError) as error:
        raise ConfigError("PAYWATCH_XPUB: not an extended public key") from error

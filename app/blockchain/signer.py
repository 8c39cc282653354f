"""Private keys: derived from the recovery words in memory, used to sign, never shown."""

from dataclasses import dataclass
from typing import Any, Final

from eth_account import Account
from eth_account.datastructures import SignedSetCodeAuthorization
from eth_account.signers.local import LocalAccount
from hdwallet import HDWallet
from hdwallet.cryptocurrencies import Ethereum
from hdwallet.derivations import CustomDerivation
from hdwallet.hds import BIP32HD
from pydantic import SecretStr

from app.blockchain.fees import Fees
from app.blockchain.wallet import ACCOUNT_PATH, MAX_INDEX, NATIVE_BRANCH, TOKEN_BRANCH, from_mnemonic
from app.core.evm import checksum, hex0x

# Paywatch's own accounts. Their parent is hardened: with the deposit account's xpub and one of its child keys anybody
# could compute the others, and no key under this path is one of those.
OWN_PATH: Final = "m/44'/60'/1'/0"
GAS_INDEX: Final = 0

# keccak256("transfer(address,uint256)")[:4], EIP-20
_TRANSFER: Final = bytes.fromhex("a9059cbb")


@dataclass(frozen=True, slots=True)
class Authorization:
    """An address's signed word that it takes the code of `delegate` (EIP-7702): one chain, one nonce."""

    chain_id: int
    delegate: bytes
    nonce: int
    y_parity: int
    r: int
    s: int


@dataclass(frozen=True, slots=True)
class Action:
    """What a transaction does, without who, when and at what price. With authorizations it is of type 4 (EIP-7702)."""

    to: bytes
    value_wei: int = 0
    data: bytes = b""
    authorizations: tuple[Authorization, ...] = ()


@dataclass(frozen=True, slots=True)
class SignedTx:
    """A transaction's bytes as they are broadcast, and its hash (32 bytes)."""

    raw: bytes
    hash: bytes


def token_transfer(token: bytes, recipient: bytes, units: int) -> Action:
    """An ERC-20 `transfer` of base units."""
    return Action(token, data=_TRANSFER + recipient.rjust(32, b"\0") + units.to_bytes(32, "big"))


class SigningAccount:
    """One private key; it can be asked to sign, and shows nothing but its 20-byte address."""

    __slots__ = ("_account", "address")

    def __init__(self, private_key: bytes) -> None:
        self._account: LocalAccount = Account.from_key(private_key)
        self.address = bytes.fromhex(self._account.address[2:])

    def __repr__(self) -> str:
        return f"SigningAccount({checksum(self.address)})"

    def sign(self, action: Action, *, chain_id: int, nonce: int, gas: int, fees: Fees) -> SignedTx:
        """Sign for one chain and one nonce: of type 4 or 2, or legacy where there is no base fee (EIP-155)."""
        fields: dict[str, Any] = {
            "chainId": chain_id,
            "nonce": nonce,
            "to": checksum(action.to),
            "value": action.value_wei,
            "data": hex0x(action.data),
            "gas": gas,
        }
        if fees.base_wei is None:
            fields["gasPrice"] = fees.max_wei
        else:
            fields |= {"maxFeePerGas": fees.max_wei, "maxPriorityFeePerGas": fees.priority_wei}
        if action.authorizations:
            fields["authorizationList"] = [_signed_fields(each) for each in action.authorizations]
        signed = self._account.sign_transaction(fields)
        return SignedTx(bytes(signed.raw_transaction), bytes(signed.hash))

    def authorize(self, *, chain_id: int, delegate: bytes, nonce: int) -> Authorization:
        """Delegate this address to `delegate`; `nonce` is the address's own, read just before (EIP-7702).

        `chain_id` is a real one: 0 would hold on every chain.
        """
        if chain_id < 1:
            raise ValueError("an authorization names its chain")
        # LocalAccount's own method is annotated as if it signed a message.
        signed: SignedSetCodeAuthorization = Account.sign_authorization(
            {"chainId": chain_id, "address": delegate, "nonce": nonce}, self._account.key
        )
        return Authorization(chain_id, delegate, nonce, signed.y_parity, signed.r, signed.s)


def nobodys_account() -> SigningAccount:
    """A key made on the spot, which owns nothing: for questions to a node that need a signature."""
    return SigningAccount(bytes(Account.create().key))


class Signer:
    """The accounts of one wallet. Only a process with the sweeper's role has one."""

    def __init__(self, mnemonic: SecretStr) -> None:
        """Raises ConfigError for a bad mnemonic."""
        wallet = from_mnemonic(mnemonic.get_secret_value())
        # Each branch is derived once and kept, as in AddressDeriver: a key costs 0.7 ms instead of 14.
        self._branches = {
            branch: _branch(wallet, f"{ACCOUNT_PATH}/{branch}") for branch in (NATIVE_BRANCH, TOKEN_BRANCH)
        }
        self.gas_account = SigningAccount(_child_key(_branch(wallet, OWN_PATH), GAS_INDEX))

    def __repr__(self) -> str:
        return f"Signer(gas account {checksum(self.gas_account.address)})"

    def account(self, branch: int, index: int) -> SigningAccount:
        """The deposit account m/44'/60'/0'/branch/index. Raises ValueError for an index outside 0 to 2**31 - 1."""
        return SigningAccount(_child_key(self._branches[branch], index))


def _branch(wallet: HDWallet, path: str) -> HDWallet:
    wallet.clean_derivation()
    key = str(wallet.from_derivation(CustomDerivation(path=path)).xprivate_key())
    branch = HDWallet(cryptocurrency=Ethereum, hd=BIP32HD, network="mainnet").from_xprivate_key(key, strict=False)
    # The first derivation of an hdwallet object must precede its first clean_derivation.
    return branch.from_derivation(CustomDerivation(path="m/0"))


def _child_key(branch: HDWallet, index: int) -> bytes:
    if not 0 <= index <= MAX_INDEX:
        raise ValueError(f"HD index {index} is out of range")
    branch.clean_derivation()
    branch.from_derivation(CustomDerivation(path=f"m/{index}"))
    return bytes.fromhex(str(branch.private_key()))


def _signed_fields(authorization: Authorization) -> dict[str, Any]:
    return {
        "chainId": authorization.chain_id,
        "address": authorization.delegate,
        "nonce": authorization.nonce,
        "yParity": authorization.y_parity,
        "r": authorization.r,
        "s": authorization.s,
    }

"""Goal: each key is the one whose address was given out, signs what the chain takes, and is never seen."""

import traceback

import pytest
from eth_account import Account
from pydantic import SecretStr
from rlp.exceptions import RLPException

from app.blockchain.fees import Fees, read_fees
from app.blockchain.rpc import Endpoint
from app.blockchain.sending import read_accounts
from app.blockchain.signer import Action, Signer, token_transfer
from app.blockchain.wallet import MAX_INDEX, NATIVE_BRANCH, TOKEN_BRANCH, AddressDeriver, account_xpub
from app.core.errors import ConfigError
from app.core.evm import checksum, to_bytes20
from tests.support.anvil import MNEMONIC, Anvil
from tests.support.sending import send

ETHER = 10**18
NOT_WORDS = "hunter2 " * 12


def key_of(path: str) -> tuple[bytes, str]:
    """Address and private key by eth-account's own derivation, another program than the one under test."""
    Account.enable_unaudited_hdwallet_features()
    account = Account.from_mnemonic(MNEMONIC, account_path=path)
    return to_bytes20(account.address), account.key.hex()


def test_keys_are_those_of_the_addresses_that_the_api_gives_out(signer: Signer) -> None:
    deriver = AddressDeriver(account_xpub(MNEMONIC))
    for branch in (NATIVE_BRANCH, TOKEN_BRANCH):
        for index in (0, 1, 77, MAX_INDEX):
            address = signer.account(branch, index).address
            assert address == deriver.address(branch, index) == key_of(f"m/44'/60'/0'/{branch}/{index}")[0]
    with pytest.raises(ValueError, match="out of range"):
        signer.account(TOKEN_BRANCH, MAX_INDEX + 1)


def test_the_gas_account_is_under_a_hardened_account_of_its_own(signer: Signer) -> None:
    assert signer.gas_account.address == key_of("m/44'/60'/1'/0/0")[0]
    assert checksum(signer.gas_account.address) == "0x8C8d35429F74ec245F8Ef2f4Fd1e551cFF97d650"


def test_no_key_and_no_word_is_shown(signer: Signer) -> None:
    _, key = key_of("m/44'/60'/0'/1/0")
    account = signer.account(TOKEN_BRANCH, 0)
    fees = Fees(1, 1, 1)
    with pytest.raises(RLPException) as refused:
        account.sign(Action(bytes(20)), chain_id=1, nonce=-1, gas=21_000, fees=fees)
    with pytest.raises(ConfigError) as bad_words:
        Signer(SecretStr(NOT_WORDS))
    errors = [*traceback.format_exception(refused.value), *traceback.format_exception(bad_words.value)]
    shown = [repr(signer), repr(account), str(account), f"{vars(signer)}", *errors]
    for text in shown:
        assert key not in text
        assert "hunter2" not in text
        assert "junk" not in text


async def test_the_chain_takes_what_is_signed_with_and_without_a_base_fee(
    anvil: Anvil, devnet: Endpoint, signer: Signer
) -> None:
    account = signer.account(NATIVE_BRANCH, 0)
    await anvil.set_balance(checksum(account.address), ETHER)
    fees = await read_fees(devnet)
    payee = bytes(19) + b"\x55"
    for priced in (fees, Fees(None, fees.max_wei, fees.max_wei)):
        assert (await send(anvil, devnet, account, Action(payee, 7), fees=priced)).status == "0x1"
    assert await anvil.balance(checksum(payee)) == 14


async def test_a_token_transfer_moves_the_token(anvil: Anvil, devnet: Endpoint, signer: Signer) -> None:
    account, payee = signer.account(NATIVE_BRANCH, 0), bytes(19) + b"\x55"
    token = await anvil.deploy("TestToken", "USD Coin", "USDC", 6)
    await anvil.set_balance(checksum(account.address), ETHER)
    await anvil.transact(token, "mint(address,uint256)", checksum(account.address), 2**255)
    await anvil.mine()
    await send(anvil, devnet, account, token_transfer(to_bytes20(token), payee, 2**255))
    assert await anvil.call(token, "balanceOf(address)", checksum(payee), returns="uint256") == 2**255


async def test_an_authorization_delegates_on_its_chain_with_its_nonce_alone(
    anvil: Anvil, devnet: Endpoint, signer: Signer
) -> None:
    await anvil.set_balance(checksum(signer.gas_account.address), ETHER)
    delegate, accounts = bytes(19) + b"\x99", [signer.account(TOKEN_BRANCH, index) for index in range(3)]
    good, other_chain, stale = accounts
    authorizations = (
        good.authorize(chain_id=anvil.chain_id, delegate=delegate, nonce=0),
        other_chain.authorize(chain_id=anvil.chain_id + 1, delegate=delegate, nonce=0),
        stale.authorize(chain_id=anvil.chain_id, delegate=delegate, nonce=1),
    )
    await send(anvil, devnet, signer.gas_account, Action(bytes(20), authorizations=authorizations), gas=200_000)
    found = await read_accounts(devnet, [account.address for account in accounts])
    assert [found[account.address].delegate for account in accounts] == [delegate, None, None]
    assert [found[account.address].nonce for account in accounts] == [1, 0, 0]
    with pytest.raises(ValueError, match="names its chain"):
        good.authorize(chain_id=0, delegate=delegate, nonce=1)

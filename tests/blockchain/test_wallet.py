"""Goal: an address is the one that every other wallet derives for the same words, or the money is lost."""

import pytest
from eth_account import Account

from app.blockchain.wallet import MAX_INDEX, NATIVE_BRANCH, TOKEN_BRANCH, AddressDeriver, account_xpub
from app.core.errors import ConfigError

WORDS = "test test test test test test test test test test test junk"


def test_the_known_vector() -> None:
    first = AddressDeriver(account_xpub(WORDS)).address(NATIVE_BRANCH, 0)
    assert first.hex() == "f39fd6e51aad88f6f4ce6ab8827279cfffb92266"


@pytest.mark.parametrize(
    "words", [WORDS, "legal winner thank year wave sausage worth useful legal winner thank yellow"]
)
def test_addresses_are_those_of_an_independent_wallet(words: str) -> None:
    Account.enable_unaudited_hdwallet_features()
    deriver = AddressDeriver(account_xpub(words))
    for branch in (NATIVE_BRANCH, TOKEN_BRANCH):
        for index in (0, 1, 2, 255, 256, 65_537, MAX_INDEX):
            theirs = Account.from_mnemonic(words, account_path=f"m/44'/60'/0'/{branch}/{index}").address
            assert "0x" + deriver.address(branch, index).hex() == theirs.lower()


@pytest.mark.parametrize("index", [-1, MAX_INDEX + 1])
def test_an_index_that_no_child_has_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        AddressDeriver(account_xpub(WORDS)).address(TOKEN_BRANCH, index)


def test_what_is_no_extended_key_is_refused() -> None:
    with pytest.raises(ConfigError):
        AddressDeriver("xpub")

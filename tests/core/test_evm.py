"""Goal: a mistyped address is caught, and a wallet is asked for exactly what is owed."""

import pytest

from app.core.evm import NATIVE_ASSET, checksum, hex0x, payment_uri, to_bytes20

# The test cases of EIP-55 itself.
VECTORS = [
    "0x52908400098527886E0F7030069857D2E4169EE7",
    "0xde709f2102306220921060314715629080e2fb77",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
]
USDC = to_bytes20("0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48")
RECIPIENT = to_bytes20("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266")


@pytest.mark.parametrize("text", VECTORS)
def test_eip_55_addresses_are_read_and_written_back(text: str) -> None:
    assert checksum(to_bytes20(text)) == text


@pytest.mark.parametrize("text", VECTORS)
def test_addresses_in_one_case_carry_no_checksum_and_are_read(text: str) -> None:
    assert to_bytes20(text.lower()) == to_bytes20("0x" + text[2:].upper()) == to_bytes20(text)


@pytest.mark.parametrize("text", VECTORS[2:])
def test_mixed_case_with_one_wrong_letter_is_refused_and_says_so(text: str) -> None:
    letter = next(index for index in range(2, 42) if text[index].isalpha())
    with pytest.raises(ValueError, match="checksum"):
        to_bytes20(text[:letter] + text[letter].swapcase() + text[letter + 1 :])


@pytest.mark.parametrize(
    "text", ["", "0x", VECTORS[1][2:], VECTORS[1] + "0", VECTORS[1][:-1], VECTORS[1] + "\n", "0xg" + "0" * 39]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        to_bytes20(text)


def test_only_twenty_bytes_have_a_checksum() -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        checksum(b"\x00" * 32)


def test_hashes_are_written_in_lower_case_hex() -> None:
    assert hex0x(bytes.fromhex("ABCD")) == "0xabcd"


def test_a_token_payment_uri_names_the_contract_and_the_transfer() -> None:
    assert payment_uri(1, RECIPIENT, USDC, 25_000_000) == (
        "ethereum:0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48@1/transfer"
        "?address=0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266&uint256=25000000"
    )


def test_a_native_payment_uri_names_the_recipient_and_the_value() -> None:
    uri = payment_uri(31337, RECIPIENT, NATIVE_ASSET, 10**18)
    assert uri == "ethereum:0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266@31337?value=1000000000000000000"

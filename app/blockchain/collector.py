"""The two contracts of contracts/sweep: where they are, how they get there, and whether what is there is they."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eth_utils.crypto import keccak

from app.blockchain.errors import FatalError, InvalidAnswerError, NodeError
from app.blockchain.rpc import Call, Endpoint
from app.blockchain.sending import estimate
from app.blockchain.signer import Action, nobodys_account
from app.blockchain.wire import to_bytes
from app.core.evm import checksum, hex0x

# The deterministic deployment proxy: keyless, the same on every chain; calldata is a salt and the code to create.
DEPLOYER: Final = bytes.fromhex("4e59b44847b379578588920ca78fbf26c0b4956c")
_SALT: Final = bytes(32)
_ARTIFACTS: Final = Path(__file__).resolve().parents[2] / "contracts" / "artifacts"
# keccak256("collect(address,address[],uint256)")[:4]
_COLLECT: Final = keccak(text="collect(address,address[],uint256)")[:4]
# EIP-7702: each authorization costs 25,000, of which 12,500 come back where the account is there already.
_LEAST_AUTHORIZATION_GAS: Final = 12_500


class ContractsError(NodeError):
    """The contracts are not usable on this chain, and why; sweeping by top-up is."""


class ContractsMissingError(ContractsError):
    """They are not deployed, or not yet."""


class WrongCodeError(ContractsError):
    """There is other code at their address, or no deployer: nothing may be delegated to it."""


@dataclass(frozen=True, slots=True)
class _Contract:
    """A contract with its constructor's arguments: `address` and `runtime` follow from them."""

    init_code: bytes
    runtime: bytes

    @property
    def address(self) -> bytes:
        """By CREATE2 (EIP-1014)."""
        return keccak(b"\xff" + DEPLOYER + _SALT + keccak(self.init_code))[12:]


class Contracts:
    """The collector and the delegate of a sponsor (20 bytes) and a treasury (20 bytes).

    Both follow from these two alone, and so they are at the same addresses on every chain where they are the same.
    """

    def __init__(self, sponsor: bytes, treasury: bytes) -> None:
        self._collector = _contract("Collector", (sponsor,))
        self.collector = self._collector.address
        self._delegate = _contract("Delegate", (treasury, self.collector))
        self.delegate = self._delegate.address

    async def present(self, endpoint: Endpoint) -> frozenset[bytes]:
        """Which of the two addresses have their code. Raises WrongCodeError, NodeError."""
        wanted = (self._collector, self._delegate)
        addresses = (*(each.address for each in wanted), DEPLOYER)
        calls: list[Call] = [("eth_getCode", [hex0x(address), "latest"]) for address in addresses]
        answers = await endpoint.batch(str, calls)
        if None in answers:
            raise InvalidAnswerError("eth_getCode gave null")
        *codes, deployer = (to_bytes(answer or "") for answer in answers)
        for contract, code in zip(wanted, codes, strict=True):
            if code and code != contract.runtime:
                raise WrongCodeError(f"other code than ours at {checksum(contract.address)}")
        if not deployer and not all(codes):
            raise WrongCodeError(f"this chain lacks the CREATE2 deployer {checksum(DEPLOYER)}")
        return frozenset(contract.address for contract, code in zip(wanted, codes, strict=True) if code)

    async def verified(self, endpoint: Endpoint) -> None:
        """Return if both are there, byte for byte. Raises ContractsMissingError, WrongCodeError, NodeError."""
        missing = {self.collector, self.delegate} - await self.present(endpoint)
        if missing:
            names = ", ".join(checksum(address) for address in sorted(missing))
            raise ContractsMissingError(f"not deployed: {names}; `paywatch contracts deploy` does it")

    def deploy_calls(self, present: Collection[bytes] = ()) -> list[Action]:
        """What anybody may send to the deployer for those that are not `present`; to send one twice reverts."""
        wanted = (self._collector, self._delegate)
        return [Action(DEPLOYER, data=_SALT + each.init_code) for each in wanted if each.address not in present]

    def collect_data(self, token: bytes, addresses: Sequence[bytes], gas_each: int) -> bytes:
        """Calldata for the collector: sweep `token` from each address, each with `gas_each` gas at most."""
        head = (_word(token), _word(96), _word(gas_each), _word(len(addresses)))  # 96: where the array begins
        return _COLLECT + b"".join((*head, *map(_word, addresses)))


async def supports_eip7702(endpoint: Endpoint, chain_id: int) -> bool:
    """Whether the chain runs transactions of type 4, asked by an estimate: nothing is sent.

    A node that does not know the field counts what it counts without, whatever a transaction costs there; one whose
    chain has not the fork refuses. The authorization is of a key made for the question, which owns nothing. Raises
    NodeError when the node does not answer.
    """
    nobody = nobodys_account()
    authorization = nobody.authorize(chain_id=chain_id, delegate=DEPLOYER, nonce=0)
    try:
        without = await estimate(endpoint, nobody.address, Action(bytes(20)))
        gas = await estimate(endpoint, nobody.address, Action(bytes(20), authorizations=(authorization,)))
    except FatalError:
        return False
    return gas - without >= _LEAST_AUTHORIZATION_GAS


def _word(value: bytes | int) -> bytes:
    return value.to_bytes(32, "big") if isinstance(value, int) else value.rjust(32, b"\0")


def _contract(name: str, arguments: Sequence[bytes]) -> _Contract:
    """The artifact with its constructor's arguments, which are its immutables in the same order."""
    artifact: dict[str, Any] = json.loads((_ARTIFACTS / f"{name}.json").read_text(encoding="utf-8"))
    runtime = bytearray.fromhex(artifact["runtimeBytecode"][2:])
    for argument, places in zip(arguments, artifact["immutables"], strict=True):
        for place in places:
            runtime[place : place + 32] = _word(argument)
    init_code = bytes.fromhex(artifact["bytecode"][2:]) + b"".join(map(_word, arguments))
    return _Contract(init_code, bytes(runtime))

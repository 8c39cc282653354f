"""A simulated chain: a tree of blocks, of which one branch is canonical. Deterministic, and it knows no node."""

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from eth_hash.auto import keccak

CHAIN_ID = 990_099
NATIVE = bytes(20)
USDC = bytes.fromhex("a0b86991c6218b36c1d19d4a2e9eb0ce3606eb48")
DAI = bytes.fromhex("6b175474e89094c44da98b954eedeac495271d0f")
FAKE = bytes.fromhex("badbadbadbadbadbadbadbadbadbadbadbadbad0")  # calls itself USDC, too
NFT = bytes.fromhex("b47e3cd837ddf8e4c57f05d70ab865de6e193bbb")
ROUTER = bytes.fromhex("7a250d5630b4cf539739df2c5dacb4c659f2488d")
DECIMALS = {USDC: 6, DAI: 18}

TRANSFER = keccak(b"Transfer(address,address,uint256)")
APPROVAL = keccak(b"Approval(address,address,uint256)")
EMPTY_ROOT = "0x56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421"


def hex0x(data: bytes) -> str:
    return "0x" + data.hex()


@dataclass(frozen=True, slots=True)
class Log:
    address: bytes
    topics: tuple[bytes, ...]
    data: bytes


def transfer_log(token: bytes, sender: bytes, recipient: bytes, units: int) -> Log:
    return Log(token, (TRANSFER, bytes(12) + sender, bytes(12) + recipient), units.to_bytes(32, "big"))


@dataclass(frozen=True, slots=True)
class Frame:
    """A call inside a transaction. A failed one and those under it pay nothing, and a DELEGATECALL moves nothing."""

    sender: bytes
    to: bytes
    value: int
    kind: str = "CALL"
    failed: bool = False
    calls: tuple["Frame", ...] = ()

    @property
    def trace(self) -> dict[str, Any]:
        """As geth's callTracer has it."""
        frame = {
            "type": self.kind,
            "from": hex0x(self.sender),
            "to": hex0x(self.to),
            "value": hex(self.value),
            "gas": "0x5208",
            "gasUsed": "0x5208",
            "input": "0x",
        }
        if self.failed:
            frame["error"] = "execution reverted"
        return frame | ({"calls": [call.trace for call in self.calls]} if self.calls else {})

    def paid(self) -> Iterator["Frame"]:
        """It and the frames under it that moved value, in the order they ran."""
        if self.failed:
            return
        if self.value and self.kind in ("CALL", "SELFDESTRUCT"):
            yield self
        for call in self.calls:
            yield from call.paid()


@dataclass(frozen=True, slots=True)
class Tx:
    """The same in whatever block it is mined. `logs` are what it emits when it succeeds, `frames` what it calls."""

    hash: bytes
    sender: bytes
    to: bytes | None
    value: int
    logs: tuple[Log, ...] = ()
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction in a block; in another block it may have ended otherwise."""

    tx: Tx
    succeeded: bool


@dataclass(frozen=True, slots=True)
class Transfer:
    """Value of a watched asset that reached somebody, in the words of DESIGN section 2."""

    block_hash: bytes
    block_number: int
    block_time: int
    tx_index: int
    position: str
    recipient: bytes
    asset: bytes
    units: int
    sender: bytes
    tx_hash: bytes
    log_index: int | None


@dataclass(eq=False)
class Block:
    """One block with all that a node can say of it; the answers are made once and shared, so copy before changing."""

    number: int
    hash: bytes
    parent: "Block | None"
    time: int
    mined: tuple[Mined, ...]
    blooms: bool
    included: frozenset[bytes] = field(repr=False)

    @cached_property
    def branch(self) -> tuple["Block", ...]:
        """The blocks from genesis to this one, by number."""
        return (*self.parent.branch, self) if self.parent else (self,)

    @cached_property
    def hex(self) -> str:
        return hex0x(self.hash)

    @cached_property
    def logs(self) -> list[dict[str, Any]]:
        logs: list[dict[str, Any]] = []
        for tx_index, mined in enumerate(self.mined):
            for log in mined.tx.logs if mined.succeeded else ():
                logs.append(
                    {
                        "address": hex0x(log.address),
                        "topics": [hex0x(topic) for topic in log.topics],
                        "data": hex0x(log.data),
                        "blockNumber": hex(self.number),
                        "blockHash": self.hex,
                        "blockTimestamp": hex(self.time),
                        "transactionHash": hex0x(mined.tx.hash),
                        "transactionIndex": hex(tx_index),
                        "logIndex": hex(len(logs)),
                        "removed": False,
                    }
                )
        return logs

    @cached_property
    def bloom(self) -> int:
        """The logs' bloom (yellow paper 4.3.1); always zero on a chain that does not fill it."""
        bloom = 0
        for mined in self.mined:
            for log in mined.tx.logs if mined.succeeded and self.blooms else ():
                for value in (log.address, *log.topics):
                    bloom |= _bloom_bits(value)
        return bloom

    @cached_property
    def header(self) -> dict[str, Any]:
        return {
            "number": hex(self.number),
            "hash": self.hex,
            "parentHash": self.parent.hex if self.parent else hex0x(bytes(32)),
            "timestamp": hex(self.time),
            "logsBloom": hex0x(self.bloom.to_bytes(256, "big")),
            "sha3Uncles": "0x1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347",
            "transactionsRoot": hex0x(keccak(b"transactions" + self.hash)) if self.mined else EMPTY_ROOT,
            "receiptsRoot": hex0x(keccak(b"receipts" + self.hash)) if self.mined else EMPTY_ROOT,
            "stateRoot": hex0x(keccak(b"state" + self.hash)),
            "mixHash": hex0x(bytes(32)),
            "miner": hex0x(ROUTER),
            "nonce": "0x0000000000000000",
            "difficulty": "0x0",
            "extraData": "0x",
            "size": "0x400",
            "gasLimit": "0x1c9c380",
            "gasUsed": hex(21_000 * len(self.mined)),
            "baseFeePerGas": "0x3b9aca00",
            "uncles": [],
            "transactions": [hex0x(mined.tx.hash) for mined in self.mined],
        }

    @cached_property
    def full(self) -> dict[str, Any]:
        """The block with whole transactions."""
        transactions = [
            {
                "hash": hex0x(mined.tx.hash),
                "blockHash": self.hex,
                "blockNumber": hex(self.number),
                "transactionIndex": hex(index),
                "from": hex0x(mined.tx.sender),
                "to": hex0x(mined.tx.to) if mined.tx.to else None,
                "value": hex(mined.tx.value),
                "gas": "0x30d40",
                "gasPrice": "0x3b9aca00",
                "input": "0xa9059cbb" if mined.tx.logs else "0x",
                "nonce": "0x0",
                "type": "0x0",
                "chainId": hex(CHAIN_ID),
                "v": "0x0",
                "r": "0x1",
                "s": "0x1",
            }
            for index, mined in enumerate(self.mined)
        ]
        return self.header | {"transactions": transactions}

    @cached_property
    def receipts(self) -> list[dict[str, Any]]:
        return [
            {
                "transactionHash": hex0x(mined.tx.hash),
                "transactionIndex": hex(index),
                "blockHash": self.hex,
                "blockNumber": hex(self.number),
                "from": hex0x(mined.tx.sender),
                "to": hex0x(mined.tx.to) if mined.tx.to else None,
                "contractAddress": None,
                "status": "0x1" if mined.succeeded else "0x0",
                "type": "0x0",
                "gasUsed": "0x5208",
                "cumulativeGasUsed": hex(21_000 * (index + 1)),
                "effectiveGasPrice": "0x3b9aca00",
                "logsBloom": hex0x(bytes(256)),
                "logs": [log for log in self.logs if log["transactionIndex"] == hex(index)],
            }
            for index, mined in enumerate(self.mined)
        ]

    @cached_property
    def traces(self) -> list[dict[str, Any]]:
        """The answer to debug_traceBlockByHash with callTracer."""
        return [
            {
                "txHash": hex0x(mined.tx.hash),
                "result": Frame(
                    mined.tx.sender,
                    mined.tx.to or bytes(20),
                    mined.tx.value,
                    failed=not mined.succeeded,
                    calls=mined.tx.frames,
                ).trace,
            }
            for mined in self.mined
        ]

    @cached_property
    def transfers(self) -> tuple[Transfer, ...]:
        """What really moved: successful transactions only, no zero values, watched tokens by their address."""
        found = []
        log_index = 0
        for tx_index, mined in enumerate(self.mined):
            if not mined.succeeded:
                continue
            tx = mined.tx
            common = (self.hash, self.number, self.time, tx_index)
            if tx.to and tx.value:
                found.append(Transfer(*common, "tx", tx.to, NATIVE, tx.value, tx.sender, tx.hash, None))
            for log in tx.logs:
                units = int.from_bytes(log.data, "big")
                if log.address in DECIMALS and log.topics[0] == TRANSFER and len(log.topics) == 3 and units:
                    sender, recipient = log.topics[1][12:], log.topics[2][12:]
                    position = f"log:{log_index}"
                    found.append(Transfer(*common, position, recipient, log.address, units, sender, tx.hash, log_index))
                log_index += 1
            nth: Counter[bytes] = Counter()
            for frame in itertools.chain.from_iterable(frame.paid() for frame in tx.frames):
                position = f"trace:{nth[frame.to]}"
                nth[frame.to] += 1
                found.append(Transfer(*common, position, frame.to, NATIVE, frame.value, frame.sender, tx.hash, None))
        return tuple(found)


@cache
def _bloom_bits(value: bytes) -> int:
    digest = keccak(value)
    bits = 0
    for index in (0, 2, 4):
        bits |= 1 << (int.from_bytes(digest[index : index + 2], "big") & 2047)
    return bits


class SimulatedChain:
    """The tree, its canonical head, and what is final.

    `finality_depth` blocks under the greatest height ever are final, in steps of `epoch`; no fork reaches below.
    """

    def __init__(self, rng: random.Random, finality_depth: int, epoch: int, blooms: bool, time: int) -> None:
        self.rng = rng
        self.finality_depth = finality_depth
        self.epoch = epoch
        self.blooms = blooms
        self._seed = rng.getrandbits(64).to_bytes(8, "big")
        self._count = 0
        self.by_hash: dict[bytes, Block] = {}
        self.tips: list[Block] = []  # heads that lost, which may win again
        self.highest = 0
        self.reorgs = 0
        self.deepest = 0
        self.head = self._add(None, time, ())

    @property
    def finalized_number(self) -> int:
        number = max(self.highest - self.finality_depth, 0)
        return number - number % self.epoch

    @property
    def deepest_fork(self) -> int:
        """How many blocks of the canonical branch may still be replaced."""
        return self.head.number - self.finalized_number

    def new_hash(self) -> bytes:
        self._count += 1
        return keccak(self._seed + self._count.to_bytes(8, "big"))

    def mine(self, time: int, mined: Iterable[Mined] = ()) -> Block:
        """A block on the canonical head."""
        self.head = self._add(self.head, max(time, self.head.time + 1), tuple(mined))
        return self.head

    def fork(self, depth: int, blocks: Sequence[tuple[int, tuple[Mined, ...]]]) -> None:
        """Replace the last `depth` canonical blocks by `blocks` (time, transactions), one or more."""
        assert 1 <= depth <= self.deepest_fork, f"{depth} blocks are not all open to a fork"
        assert blocks
        self._leave(depth)
        self.head = self.head.branch[self.head.number - depth]
        for time, mined in blocks:
            self.mine(time, mined)

    def revive(self, tip: Block) -> None:
        """Make a branch that had lost canonical again. Only where what is final stays."""
        assert tip.branch[: self.finalized_number + 1] == self.head.branch[: self.finalized_number + 1]
        self._leave(self.head.number - common_ancestor(self.head, tip).number)
        self.tips.remove(tip)
        self.head = tip

    def revivable(self) -> list[Block]:
        """Lost branches that may still win: they share what is final, and are not shorter than it."""
        final = self.finalized_number
        return [tip for tip in self.tips if tip.number > final and tip.branch[final] is self.head.branch[final]]

    def _leave(self, depth: int) -> None:
        self.reorgs += 1
        self.deepest = max(self.deepest, depth)
        self.tips.append(self.head)

    def _add(self, parent: Block | None, time: int, mined: tuple[Mined, ...]) -> Block:
        included = (parent.included if parent else frozenset()) | {each.tx.hash for each in mined}
        number = parent.number + 1 if parent else 0
        block = Block(number, self.new_hash(), parent, time, mined, self.blooms, included)
        self.by_hash[block.hash] = block
        self.highest = max(self.highest, number)
        return block


def common_ancestor(one: Block, other: Block) -> Block:
    number = min(one.number, other.number)
    while one.branch[number] is not other.branch[number]:
        number -= 1
    return one.branch[number]

"""A chain of the shape of Ethereum's, made from a seed, as the JSON that a node would send.

A block has 200 transactions in 180 kB; of its 400 logs 88 are transfers of watched tokens. Hashes are random, but link.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from eth_utils.crypto import keccak

TRANSFER_TOPIC = keccak(text="Transfer(address,address,uint256)")
BLOCK_TIME_S = 12
TRANSACTIONS = 200
LOGS = 400
TOKEN_LOGS = 88
BLOOM_ITEMS = 800  # each log brings about two items that no other log of the block has


@dataclass(frozen=True)
class WatchedToken:
    symbol: str
    address: bytes
    decimals: int


# The first two are in every block, the third in few: busy blooms promise it without cause.
TOKENS = (
    WatchedToken("USDC", bytes.fromhex("a0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"), 6),
    WatchedToken("USDT", bytes.fromhex("dac17f958d2ee523a2206206994597c13d831ec7"), 6),
    WatchedToken("PYUSD", bytes.fromhex("6c3ea9036406852006290770bedfcaba0e23a0e8"), 6),
)
RARE_EVERY = 10


@dataclass(frozen=True)
class Payment:
    """A transfer to a deposit address, in a transaction of its own; `token` None is native coin."""

    block: int
    recipient: bytes
    token: bytes | None
    units: int


@dataclass(frozen=True)
class Block:
    """`full` and `light`: eth_getBlockByNumber with and without transactions; `logs`: the watched ones with commas."""

    number: int
    hash: str
    full: bytes
    light: bytes
    logs: bytes


@dataclass
class Mainnet:
    """Blocks from 0 to the head, the receipts of the payments' transactions, and who got native coin in which block."""

    blocks: list[Block] = field(default_factory=list)
    receipts: dict[str, bytes] = field(default_factory=dict)
    native: dict[bytes, list[tuple[int, int]]] = field(default_factory=dict)


def make(seed: int, blocks: int, head_time: int, payments: Sequence[Payment]) -> Mainnet:
    """Block 0, which is empty, and `blocks` more with the payments in them; the last one is mined at `head_time`."""
    maker = _Maker(seed)
    for number in range(blocks + 1):
        time = head_time - (blocks - number) * BLOCK_TIME_S
        maker.add(number, time, [payment for payment in payments if payment.block == number])
    return maker.chain


class _Maker:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.chain = Mainnet()

    def add(self, number: int, time: int, payments: Sequence[Payment]) -> None:
        parent = self.chain.blocks[-1].hash if number else self._hex(32)
        size = TRANSACTIONS if number else 0
        hash_ = self._hex(32)
        tx_hashes = [self._hex(32) for _ in range(size)]
        paid = dict(zip(self.rng.sample(range(size), len(payments)), payments, strict=True))
        transactions = [
            self._transaction(hash_, number, index, tx_hash, paid.get(index)) for index, tx_hash in enumerate(tx_hashes)
        ]
        transfers = self._transfers(number, size, paid)
        places = sorted(self.rng.sample(range(LOGS), len(transfers)))
        logs = [
            self._log(hash_, number, index, tx_hashes[index], place, token, recipient, units)
            for place, (index, token, recipient, units) in zip(places, transfers, strict=True)
        ]
        for index, payment in paid.items():
            own = [text for text, (at, *_) in zip(logs, transfers, strict=True) if at == index and payment.token]
            self.chain.receipts[tx_hashes[index]] = _receipt(hash_, number, index, tx_hashes[index], own)
            if payment.token is None:
                self.chain.native.setdefault(payment.recipient, []).append((number, payment.units))
        header = self._header(number, hash_, parent, time, {token for _, token, _, _ in transfers})
        full = header + '"transactions":[' + ",".join(transactions) + "]}"
        light = header + '"transactions":' + msgspec.json.encode(tx_hashes).decode() + "}"
        self.chain.blocks.append(Block(number, hash_, full.encode(), light.encode(), ",".join(logs).encode()))

    def _transfers(self, number: int, size: int, paid: dict[int, Payment]) -> list[tuple[int, bytes, bytes, int]]:
        """(transaction index, token, recipient, units) of a block's watched transfers, in chain order."""
        if size == 0:
            return []
        found = [(index, each.token, each.recipient, each.units) for index, each in paid.items() if each.token]
        others = self.rng.choices([index for index in range(size) if index not in paid], k=TOKEN_LOGS - len(found))
        for count, index in enumerate(others):
            rare = number % RARE_EVERY == 0 and count == 0
            token = TOKENS[2] if rare else TOKENS[count % 2]
            units = 0 if self.rng.random() < 0.05 else self.rng.randrange(1, 10**11)
            found.append((index, token.address, self.rng.randbytes(20), units))
        return sorted(found)

    def _transaction(self, block_hash: str, number: int, index: int, tx_hash: str, paid: Payment | None) -> str:
        kind = self.rng.random()
        to, value, data = self._hex(20), "0x0", "0x"
        if paid is not None and paid.token is None:
            to, value = "0x" + paid.recipient.hex(), hex(paid.units)
        elif paid is not None or kind < 0.45:  # a token's transfer
            to, data = "0x" + TOKENS[index % 2].address.hex(), "0xa9059cbb" + self._hex(64)[2:]
        elif kind < 0.8:  # plain ether
            value = hex(self.rng.randrange(10**14, 10**19))
        else:  # a contract call, half of them with value
            value = hex(self.rng.randrange(10**14, 10**19)) if kind < 0.9 else "0x0"
            data = self._hex(4 + 32 * 12)
        return (
            f'{{"type":"0x2","chainId":"0x1","nonce":"{self._quantity(20)}","gas":"{self._quantity(20)}",'
            f'"maxFeePerGas":"{self._quantity(36)}","maxPriorityFeePerGas":"{self._quantity(30)}","to":"{to}",'
            f'"value":"{value}","accessList":[],"input":"{data}","r":"{self._hex(32)}","s":"{self._hex(32)}",'
            f'"yParity":"0x1","v":"0x1","hash":"{tx_hash}","blockHash":"{block_hash}","blockNumber":"{hex(number)}",'
            f'"transactionIndex":"{hex(index)}","from":"{self._hex(20)}","gasPrice":"{self._quantity(36)}"}}'
        )

    def _log(
        self, block_hash: str, number: int, index: int, tx_hash: str, place: int, token: bytes, to: bytes, units: int
    ) -> str:
        topics = f'"0x{TRANSFER_TOPIC.hex()}","0x{"0" * 24}{self._hex(20)[2:]}","0x{"0" * 24}{to.hex()}"'
        return (
            f'{{"address":"0x{token.hex()}","topics":[{topics}],"data":"0x{units:064x}","blockNumber":"{hex(number)}",'
            f'"transactionHash":"{tx_hash}","transactionIndex":"{hex(index)}","blockHash":"{block_hash}",'
            f'"logIndex":"{hex(place)}","removed":false}}'
        )

    def _header(self, number: int, hash_: str, parent: str, time: int, tokens: Iterable[bytes]) -> str:
        bloom = 0
        if number:
            for _ in range(3 * BLOOM_ITEMS):
                bloom |= 1 << self.rng.getrandbits(11)
        for item in (*tokens, TRANSFER_TOPIC) if number else ():
            digest = keccak(item)
            for start in (0, 2, 4):
                bloom |= 1 << (int.from_bytes(digest[start : start + 2], "big") & 2047)
        return (
            f'{{"number":"{hex(number)}","hash":"{hash_}","parentHash":"{parent}","timestamp":"{hex(time)}",'
            f'"logsBloom":"0x{bloom:0512x}","sha3Uncles":"{self._hex(32)}","miner":"{self._hex(20)}",'
            f'"stateRoot":"{self._hex(32)}","transactionsRoot":"{self._hex(32)}","receiptsRoot":"{self._hex(32)}",'
            f'"difficulty":"0x0","gasLimit":"0x2aea540","gasUsed":"{self._quantity(24)}","extraData":"0x",'
            f'"mixHash":"{self._hex(32)}","nonce":"0x0000000000000000","baseFeePerGas":"{self._quantity(34)}",'
            f'"withdrawals":[],"uncles":[],"size":"0x1a2b3",'
        )

    def _hex(self, size: int) -> str:
        return "0x" + self.rng.randbytes(size).hex()

    def _quantity(self, bits: int) -> str:
        return hex(self.rng.getrandbits(bits))


def _receipt(block_hash: str, number: int, index: int, tx_hash: str, logs: Sequence[str]) -> bytes:
    return (
        f'{{"transactionHash":"{tx_hash}","blockHash":"{block_hash}","blockNumber":"{hex(number)}","status":"0x1",'
        f'"transactionIndex":"{hex(index)}","gasUsed":"0x5208","type":"0x2","logs":[{",".join(logs)}]}}'
    ).encode()

"""A node in a process of its own that answers from memory, and remembers what it was asked."""

import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import msgspec

from benchmarks.mainnet import TOKENS, Mainnet, Payment, make

FINALITY_BLOCKS = 64
BALANCE_WORD = 2 + 2 * 33  # "0x" and the 33 bytes of code that come before the addresses whose balances are wanted


class Request(msgspec.Struct):
    id: int
    method: str
    params: list[Any] = []


@dataclass(frozen=True)
class Log:
    """What the node was sent since it was last asked: request bodies, and the bytes that it answered with."""

    bodies: list[bytes]
    answered_bytes: int
    block_bytes: int


class ReplayNode:
    """The node as the measuring process sees it: a URL, and what it was asked."""

    def __init__(self, seed: int, blocks: int, payments: Sequence[Payment]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, seed, blocks, list(payments)), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self.url = f"http://127.0.0.1:{self._pipe.recv()}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()

    def take_log(self) -> Log:
        """What it was asked since the last call of this."""
        self._pipe.send("log")
        log: Log = self._pipe.recv()
        return log


class _Server:
    def __init__(self, chain: Mainnet) -> None:
        self.chain = chain
        self.by_hash = {block.hash: block for block in chain.blocks}
        self.decimals = {"0x" + token.address.hex(): token.decimals for token in TOKENS}
        self.decode = msgspec.json.Decoder(list[Request] | Request).decode
        self.bodies: list[bytes] = []
        self.answered_bytes = 0
        self.lock = threading.Lock()
        self.methods: dict[str, Callable[..., list[bytes]]] = {
            "eth_chainId": lambda: [b'"0x1"'],
            "eth_getBlockByNumber": self._block,
            "eth_getLogs": self._logs,
            "eth_getTransactionReceipt": lambda tx_hash: [chain.receipts.get(tx_hash, b"null")],
            "eth_call": self._call,
            "eth_getBalance": lambda _address, _at: [b'"0x0"'],
        }

    def take_log(self) -> Log:
        with self.lock:
            log = Log(self.bodies, self.answered_bytes, sum(len(block.full) for block in self.chain.blocks))
            self.bodies, self.answered_bytes = [], 0
        return log

    def connection(self, sock: socket.socket) -> None:
        """Serve one keep-alive connection; the answer's fragments are sent as they lie in memory."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock, sock.makefile("rb") as reader:
            while reader.readline():
                length = 0
                while (line := reader.readline()) not in (b"\r\n", b""):
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                body = reader.read(length)
                pieces = self._answer(body)
                size = sum(map(len, pieces))
                with self.lock:
                    self.bodies.append(body)
                    self.answered_bytes += size
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n".encode()
                small = b""
                for piece in (head, *pieces):
                    if len(piece) < 4096:
                        small += piece
                    else:
                        sock.sendall(small)
                        sock.sendall(piece)
                        small = b""
                if small:
                    sock.sendall(small)

    def _answer(self, body: bytes) -> list[bytes]:
        asked = self.decode(body)
        if isinstance(asked, Request):
            return self._one(asked)
        pieces = [b"["]
        for index, request in enumerate(asked):
            pieces += [b"," if index else b"", *self._one(request)]
        return [*pieces, b"]"]

    def _one(self, request: Request) -> list[bytes]:
        result = self.methods[request.method](*request.params)
        return [b'{"jsonrpc":"2.0","id":%d,"result":' % request.id, *result, b"}"]

    def _block(self, name: str, full: bool) -> list[bytes]:
        head = len(self.chain.blocks) - 1
        number = {"latest": head, "finalized": max(head - FINALITY_BLOCKS, 0)}.get(name)
        number = int(name, 16) if number is None else number
        if number > head:
            return [b"null"]
        block = self.chain.blocks[number]
        return [block.full if full else block.light]

    def _logs(self, query: dict[str, Any]) -> list[bytes]:
        if "blockHash" in query:
            blocks = [self.by_hash[query["blockHash"]]]
        else:
            blocks = self.chain.blocks[int(query["fromBlock"], 16) : int(query["toBlock"], 16) + 1]
        pieces: list[bytes] = []
        for block in blocks:
            if block.logs:
                pieces += [b"," if pieces else b"", block.logs]
        return [b"[", *pieces, b"]"]

    def _call(self, call: dict[str, str], at: str | dict[str, str]) -> list[bytes]:
        if "to" in call:
            return [b'"0x%064x"' % self.decimals[call["to"]]]
        assert isinstance(at, dict)
        number = self.by_hash[at["blockHash"]].number
        words = bytes.fromhex(call["data"][BALANCE_WORD:])
        owners = [words[start + 12 : start + 32] for start in range(0, len(words), 32)]
        balances = (sum(wei for block, wei in self.chain.native.get(each, ()) if block <= number) for each in owners)
        return [b'"0x' + b"".join(b"%064x" % wei for wei in balances) + b'"']


def _serve(pipe: Connection, seed: int, blocks: int, payments: Sequence[Payment]) -> None:
    server = _Server(make(seed, blocks, int(time.time()), payments))
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listener, server), daemon=True).start()
    pipe.send(listener.getsockname()[1])
    while pipe.recv():
        pipe.send(server.take_log())


def _accept(listener: socket.socket, server: _Server) -> None:
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=server.connection, args=(sock,), daemon=True).start()

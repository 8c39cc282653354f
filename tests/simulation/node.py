"""What nodes say of the chain: JSON-RPC over HTTP, from a view of their own, and with every fault that providers have.

Faults are drawn for each HTTP request. What is said is either true of the node's own view of the chain or can be seen
to be wrong; a node that made up a consistent chain of its own would be believed, by anybody.
"""

import asyncio
import copy
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
from aiohttp import web

from app.core import limits
from tests.simulation.chain import CHAIN_ID, DECIMALS, Block, SimulatedChain, common_ancestor
from tests.simulation.virtual import Clock, real_sleep

Call = dict[str, Any]
Answer = dict[str, Any]

HTML = "<html>\r\n<head><title>{0}</title></head>\r\n<body><center><h1>{0}</h1></center></body>\r\n</html>"
HTTP_FAULTS = ("429", "500", "502", "503", "hang", "reset", "truncated", "garbage", "rpc_429", "rpc_error")
BATCH_FAULTS = ("short_batch", "twice_in_batch", "error_for_batch", "error_in_batch")
ITEM_FAULTS: dict[str, tuple[str, ...]] = {
    "eth_getBlockByNumber": ("null_block", "wrong_block", "foreign_transaction"),
    "eth_getBlockByHash": ("null_block", "foreign_transaction"),
    "eth_getLogs": ("foreign_logs", "removed_logs", "doubled_logs", "null_logs", "silent_empty"),
    "eth_getTransactionReceipt": ("null_receipt", "stale_receipt"),
    "eth_getBlockReceipts": ("null_receipt", "short_receipts"),
    "debug_traceBlockByHash": ("null_traces", "short_traces"),
}
RPC_ERRORS = (
    (-32603, "Internal error"),
    (-32603, "internal server error: failed to forward request to upstream"),
    (-32000, "execution timeout"),
    (-32005, "daily request count exceeded, request rate limited"),  # Infura
    (-32007, "50/second request limit reached - reduce calls per second or upgrade your account"),  # QuickNode
    (-32000, "header not found"),
    (429, "Your app has exceeded its compute units per second capacity."),  # Alchemy
)
# (code, message); {0}: the node's limit, {1} and {2}: a range that would work.
_WORKS = "parameters and the response size limit, this block range should work: [{1}, {2}]"
_ALCHEMY = "Log response size exceeded. You can make eth_getLogs requests with up to a {0} block range. Based on your "
_ALCHEMY_FREE = (
    "Under the Free tier plan, you can make eth_getLogs requests with up to a {0} block range. Based on your "
)
RANGE_ERRORS = (
    (-32602, _ALCHEMY + _WORKS),
    (-32600, _ALCHEMY_FREE + _WORKS),
    (-32005, "query returned more than 10000 results. Try with this block range [{1}, {2}]."),  # Infura
    (-32614, "eth_getLogs is limited to a {0} range"),  # QuickNode
    (-32000, "exceed maximum block range: {0}"),  # BNB's public nodes
    (-32000, "block range is too wide"),  # Ankr
    (-32602, "query exceeds max block range {0}"),  # reth
    (-32000, "Block range is too large"),
    (-32047, "Invalid eth_getLogs request. 'fromBlock'-'toBlock' range too large. Max range: {0}"),  # Cloudflare
)
PAST_HEAD_ERRORS = (
    (-32602, "block range extends beyond current head block"),  # geth since 1.16
    (-32000, "requested to block {0} after last accepted block {1}"),  # Avalanche
    (-32001, "Resource not found: block {0}"),
)
UNKNOWN_HASH_ERRORS = ((-32000, "unknown block"), (-32000, "header not found"), (-32001, "block not found"))


class Caller(Protocol):
    """Who asks: the worker whose number is in the URL's path."""

    gone: bool

    async def point(self, kind: str, detail: str = "") -> None: ...


class NodeRefusalError(Exception):
    """A JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(eq=False)
class Endpoint:
    """A URL and what is behind it: one node, or a balancer before two that see different heads.

    `fault_rate` is the part of HTTP requests that fail. `max_range` None: logs of any range in one answer. `past_head`:
    index of the error for a range above the head; None: such a range is answered with what there is.
    """

    head: Block
    fault_rate: float = 0.0
    max_range: int | None = None
    range_error: int = 0
    past_head: int | None = 0
    unknown_hash: int = 0
    lag_blocks: int = 0
    balanced_with: Block | None = None
    down: bool = False
    seen: set[bytes] = field(default_factory=set)

    def look(self, head: Block, lag_blocks: int) -> None:
        """See a new head, or one a few blocks under it."""
        self.head = head.branch[max(head.number - lag_blocks, 0)]
        self.seen.update(block.hash for block in self.head.branch)


class Nodes:
    """The endpoints of one run. `peaceful` turns every fault off."""

    def __init__(
        self, chain: SimulatedChain, clock: Clock, rng: random.Random, endpoints: Iterable[Endpoint], by_tag: bool
    ) -> None:
        self.chain = chain
        self.clock = clock
        self.rng = rng
        self.endpoints = list(endpoints)
        self.by_tag = by_tag
        self.peaceful = True
        self.silenced: set[bytes] = set()  # hashes of blocks whose logs were kept silent about once
        self.faults: Counter[str] = Counter()
        self.requests = 0
        self.on_request: Callable[[], None] = lambda: None  # the world moves while the gateway waits
        for endpoint in self.endpoints:
            endpoint.look(chain.head, 0)

    async def answer(self, index: int, caller: Caller, request: web.Request) -> web.StreamResponse:
        """One HTTP request to an endpoint."""
        endpoint = self.endpoints[index]
        body = msgspec.json.decode(await request.read())
        calls: list[Call] = body if isinstance(body, list) else [body]
        self.requests += 1
        await caller.point("node", str(calls[0]["method"]))
        if caller.gone or request.transport is None or request.transport.is_closing():
            return _reset(request)  # its client no longer waits
        self.clock.advance(0.02)
        if not self.peaceful:
            self.on_request()
        fault = self._draw(endpoint, calls, isinstance(body, list))
        if fault is not None:
            self.faults[fault] += 1
        if fault in HTTP_FAULTS:
            broken = await self._broken(request, fault)
            if broken is not None:
                return broken
        answers = self._answers(endpoint, calls, fault)
        if isinstance(body, list):
            raw = self._batch(answers, fault)
        else:
            raw = msgspec.json.encode(answers[0])
        if fault == "truncated":
            raw = raw[: self.rng.randrange(len(raw))]
        return web.Response(body=raw, content_type="application/json")

    def _draw(self, endpoint: Endpoint, calls: list[Call], is_batch: bool) -> str | None:
        if endpoint.down:
            return self.rng.choice(("502", "reset", "hang"))
        if self.peaceful or self.rng.random() >= endpoint.fault_rate:
            return None
        kinds: list[str] = [*HTTP_FAULTS]
        if is_batch:
            kinds += BATCH_FAULTS
        fitting = [
            fault for method in {call["method"]: None for call in calls} for fault in ITEM_FAULTS.get(method, ())
        ]
        kinds += fitting * 5
        if "silent_empty" in fitting and not self.chain.blooms:
            kinds += ["silent_empty"] * 40  # where nothing gives it away but a second look
        return self.rng.choice(kinds)

    async def _broken(self, request: web.Request, fault: str) -> web.StreamResponse | None:
        """An answer that is no JSON-RPC, or none at all."""
        if fault == "429":
            headers = {"Retry-After": self.rng.choice(("0", "1", "2"))} if self.rng.random() < 0.7 else {}
            return web.Response(status=429, text="Too Many Requests", headers=headers)
        if fault == "rpc_429":
            error = {"code": -32005, "message": "Too Many Requests", "data": {"see": "https://infura.io/dashboard"}}
            answer = {"jsonrpc": "2.0", "id": None, "error": error}
            return web.Response(status=429, body=msgspec.json.encode(answer), content_type="application/json")
        if fault in ("500", "502", "503"):
            reasons = {"500": "Internal Server Error", "502": "Bad Gateway", "503": "Service Temporarily Unavailable"}
            page = HTML.format(f"{fault} {reasons[fault]}")
            return web.Response(status=int(fault), text=page, content_type="text/html")
        if fault == "hang":
            await self.clock.wait(limits.RPC_TIMEOUT_S + 0.5)
            for _ in range(5):
                await real_sleep(0)
            return _reset(request)
        if fault == "reset":
            return _reset(request)
        if fault == "garbage":
            return web.Response(text=HTML.format("Welcome"), content_type="text/html")
        if fault == "rpc_error":
            code, message = self.rng.choice(RPC_ERRORS)
            answer = {"jsonrpc": "2.0", "id": 0, "error": {"code": code, "message": message}}
            return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
        return None

    def _answers(self, endpoint: Endpoint, calls: list[Call], fault: str | None) -> list[Answer]:
        view = endpoint.head
        if endpoint.balanced_with is not None and not self.peaceful and self.rng.random() < 0.3:
            view = endpoint.balanced_with
        final = min(view.number, self.chain.finalized_number)
        if view.branch[final] is not self.chain.head.branch[final]:
            self.faults["lost_to_what_is_final"] += 1
        fitting = [index for index, call in enumerate(calls) if fault in ITEM_FAULTS.get(call["method"], ())]
        struck = self.rng.choice(fitting) if fitting else -1
        answers: list[Answer] = []
        for index, call in enumerate(calls):
            answer: Answer = {"jsonrpc": "2.0", "id": call["id"]}
            try:
                result = self._result(endpoint, view, call)
                # An index that is late is late for all that is asked; other lies are told of one call.
                lied_of = index in (fitting if fault == "silent_empty" else (struck,))
                answer["result"] = self._falsify(view, call, result, fault) if lied_of and fault else result
            except NodeRefusalError as error:
                answer["error"] = {"code": error.code, "message": error.message}
            answers.append(answer)
        return answers

    def _batch(self, answers: list[Answer], fault: str | None) -> bytes:
        if fault == "short_batch":
            answers = answers[: self.rng.randrange(len(answers))]
        elif fault == "twice_in_batch" and len(answers) > 1:
            answers[self.rng.randrange(len(answers))] = answers[self.rng.randrange(len(answers))]
        elif fault == "error_in_batch":
            code, message = self.rng.choice(RPC_ERRORS)
            index = self.rng.randrange(len(answers))
            error = {"code": code, "message": message}
            answers[index] = {"jsonrpc": "2.0", "id": answers[index]["id"], "error": error}
        elif fault == "error_for_batch":
            code, message = self.rng.choice(RPC_ERRORS)
            return msgspec.json.encode({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}})
        if not self.peaceful and self.rng.random() < 0.3:
            self.faults["batch_out_of_order"] += 1
            self.rng.shuffle(answers)
        return msgspec.json.encode(answers)

    # What is true of the view

    def _result(self, endpoint: Endpoint, view: Block, call: Call) -> Any:
        method, params = call["method"], call.get("params", [])
        if method in ("eth_getBlockByNumber", "eth_getBlockByHash"):
            by_hash = method.endswith("Hash")
            block = self._by_hash(endpoint, params[0]) if by_hash else self._by_number(view, params[0])
            return None if block is None else block.full if params[1] else block.header
        if method == "eth_getLogs":
            return self._logs(endpoint, view, params[0])
        if method == "eth_getTransactionReceipt":
            return next((r for block in reversed(view.branch) if (r := _receipt(block, params[0]))), None)
        if method == "eth_getTransactionByHash":
            found = (tx for block in view.branch for tx in block.full["transactions"] if tx["hash"] == params[0])
            return next(found, None)
        if method == "eth_getBlockReceipts":
            block = self._named(endpoint, view, params[0])
            return None if block is None else block.receipts
        if method == "debug_traceBlockByHash":
            block = self._by_hash(endpoint, params[0])
            if block is None:
                raise NodeRefusalError(-32000, f"block {params[0]} not found")  # geth
            return block.traces
        if method == "eth_getBalance":
            block = self._named(endpoint, view, params[1])
            if block is None:
                raise NodeRefusalError(-32000, "header not found")
            return hex(_received(block, bytes.fromhex(params[0][2:])))
        return self._constant(view, method, params)

    def _constant(self, view: Block, method: str, params: list[Any]) -> Any:
        """What does not depend on the chain's course."""
        if method == "eth_call":
            token = bytes.fromhex(params[0].get("to", "0x")[2:])
            if params[0].get("data", params[0].get("input")) == "0x313ce567" and token in DECIMALS:
                return "0x" + DECIMALS[token].to_bytes(32, "big").hex()
            raise NodeRefusalError(3, "execution reverted")
        if method == "eth_getCode":
            return "0x6080" if bytes.fromhex(params[0][2:]) in DECIMALS else "0x"
        constants = {
            "eth_chainId": hex(CHAIN_ID),
            "net_version": str(CHAIN_ID),
            "eth_blockNumber": hex(view.number),
            "eth_syncing": False,
            "web3_clientVersion": "Geth/v1.16.4-stable/linux-amd64/go1.24.6",
        }
        if method not in constants:
            raise NodeRefusalError(-32601, f"the method {method} does not exist/is not available")
        return constants[method]

    def _by_number(self, view: Block, name: str) -> Block | None:
        if name in ("latest", "pending"):
            return view
        if name in ("finalized", "safe"):
            if not self.by_tag:
                raise NodeRefusalError(-32601, f"{name} block is not supported")
            shared = common_ancestor(view, self.chain.head).number  # no node calls final what is on a branch that lost
            return view.branch[min(self.chain.finalized_number, shared)]
        number = 0 if name == "earliest" else int(name, 16)
        return view.branch[number] if number <= view.number else None

    def _by_hash(self, endpoint: Endpoint, text: str) -> Block | None:
        hash_ = bytes.fromhex(text[2:])
        return self.chain.by_hash[hash_] if hash_ in endpoint.seen else None

    def _named(self, endpoint: Endpoint, view: Block, name: Any) -> Block | None:
        """A block by number, tag or hash, the last bare or as EIP-1898 has it."""
        if isinstance(name, dict):
            name = name.get("blockHash") or name["blockNumber"]
        return self._by_hash(endpoint, name) if len(name) == 66 else self._by_number(view, name)

    def _logs(self, endpoint: Endpoint, view: Block, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        if "blockHash" in wanted:
            block = self._by_hash(endpoint, wanted["blockHash"])
            if block is None:
                raise NodeRefusalError(*UNKNOWN_HASH_ERRORS[endpoint.unknown_hash])
            return _matching([block], wanted)
        first, last = (self._height(view, wanted.get(name, "latest")) for name in ("fromBlock", "toBlock"))
        if endpoint.max_range is not None and last - first + 1 > endpoint.max_range:
            self.faults["range_too_wide"] += 1
            code, message = RANGE_ERRORS[endpoint.range_error]
            working = first + endpoint.max_range - 1
            raise NodeRefusalError(code, message.format(endpoint.max_range, hex(first), hex(working)))
        if last > view.number:
            if endpoint.past_head is not None:
                self.faults["range_past_head"] += 1
                code, message = PAST_HEAD_ERRORS[endpoint.past_head or 0]
                raise NodeRefusalError(code, message.format(last, view.number))
            self.faults["range_past_head_silent"] += 1
        return _matching(view.branch[first : last + 1], wanted)

    def _height(self, view: Block, name: str) -> int:
        block = None if name.startswith("0x") else self._by_number(view, name)
        return block.number if block is not None else int(name, 16)

    # What is not true of it

    def _falsify(self, view: Block, call: Call, result: Any, fault: str) -> Any:
        if fault in ("null_block", "null_receipt", "null_logs", "null_traces"):
            return None
        if fault == "wrong_block":
            return self._wrong_block(view, call, result)
        if fault == "foreign_transaction" and result and result["transactions"]:
            return self._with_foreign_transaction(result)
        if fault == "foreign_logs":
            others = [log for block in view.branch for log in block.logs]
            wanted = call["params"][0]
            others = [log for log in others if not _asked_for(log, wanted) and _fits(log, wanted)]
            return [*result, *self.rng.sample(others, min(len(others), 8))]
        if fault == "removed_logs":
            return [log | {"removed": True} for log in result]
        if fault == "doubled_logs":
            return [log for log in result for _ in range(2)]
        if fault == "silent_empty":
            return self._silenced(result)
        if fault == "stale_receipt":
            return self._stale_receipt(view, call)
        if fault in ("short_receipts", "short_traces") and result:
            return result[:-1]
        return result

    def _wrong_block(self, view: Block, call: Call, result: Any) -> Any:
        if result is None or not call["params"][0].startswith("0x"):
            return result
        number = int(result["number"], 16) + self.rng.choice((-1, 1))
        other = view.branch[min(max(number, 0), view.number)]
        return other.full if call["params"][1] else other.header

    def _with_foreign_transaction(self, result: dict[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(result)
        if isinstance(changed["transactions"][0], dict):
            self.rng.choice(changed["transactions"])["blockHash"] = "0x" + self.rng.randbytes(32).hex()
        return changed

    def _silenced(self, logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Nothing, as if the block were empty; for each block once, as an index that is late catches up."""
        hashes = {bytes.fromhex(log["blockHash"][2:]) for log in logs}
        if hashes & self.silenced:
            return logs
        self.silenced |= hashes
        return []

    def _stale_receipt(self, view: Block, call: Call) -> Any:
        """The receipt from a block that another branch has, from before a fork."""
        for tip in reversed(self.chain.tips):
            for block in tip.branch[common_ancestor(view, tip).number + 1 :]:
                if receipt := _receipt(block, call["params"][0]):
                    return receipt
        return None


class NodeServer:
    """One HTTP server on loopback for all runs of a process, with a port for each endpoint."""

    PORTS = 3

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.nodes: Nodes | None = None
        self.callers: dict[str, Caller] = {}
        self._runners: list[web.AppRunner] = []

    async def start(self) -> None:
        for index in range(self.PORTS):
            application = web.Application()
            application.router.add_post("/{caller}", self._handler(index))
            runner = web.AppRunner(application, access_log=None, keepalive_timeout=1e9, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.ports.append(runner.addresses[0][1])
            self._runners.append(runner)

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    def _handler(self, index: int) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            caller = self.callers.get(request.match_info["caller"])
            if self.nodes is None or caller is None or caller.gone:
                return _reset(request)
            try:
                return await self.nodes.answer(index, caller, request)
            except asyncio.CancelledError:
                return _reset(request)

        return handle


def _reset(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


def _receipt(block: Block, tx_hash: str) -> dict[str, Any] | None:
    hash_ = bytes.fromhex(tx_hash[2:])
    if hash_ not in block.included or (block.parent is not None and hash_ in block.parent.included):
        return None
    return next((receipt for receipt in block.receipts if receipt["transactionHash"] == tx_hash), None)


def _received(block: Block, address: bytes) -> int:
    mined = (each for each_block in block.branch for each in each_block.mined)
    return sum(each.tx.value for each in mined if each.succeeded and each.tx.to == address)


def _matching(blocks: Iterable[Block], wanted: dict[str, Any]) -> list[dict[str, Any]]:
    return [log for block in blocks for log in block.logs if _fits(log, wanted)]


def _fits(log: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a log passes a filter's address and topics (null and lists as the JSON-RPC specification has them)."""
    addresses = wanted.get("address")
    if addresses:
        names = [addresses] if isinstance(addresses, str) else addresses
        if log["address"] not in [name.lower() for name in names]:
            return False
    for index, topic in enumerate(wanted.get("topics", [])):
        if topic is None:
            continue
        if index >= len(log["topics"]) or log["topics"][index] not in ([topic] if isinstance(topic, str) else topic):
            return False
    return True


def _asked_for(log: dict[str, Any], wanted: dict[str, Any]) -> bool:
    if "blockHash" in wanted:
        return bool(log["blockHash"] == wanted["blockHash"])
    bounds = [wanted.get(name, "latest") for name in ("fromBlock", "toBlock")]
    if not all(bound.startswith("0x") for bound in bounds):
        return True
    return int(bounds[0], 16) <= int(log["blockNumber"], 16) <= int(bounds[1], 16)

"""A real EVM node: Anvil from the npm package, driven by raw JSON-RPC so that its user sees what the node says."""

import asyncio
import json
import platform
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from eth_abi.abi import decode, encode
from eth_abi.grammar import TupleType, parse
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from devnet.process import ChildProcess

REPO_ROOT = Path(__file__).resolve().parents[1]
ARTIFACTS_DIR = REPO_ROOT / "contracts" / "artifacts"
MNEMONIC = "test test test test test test test test test test test junk"  # Anvil's own default

START_TIMEOUT_S = 60.0
RECEIPT_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.01
# Fixed, so that a transaction that will revert is mined too; an estimate would refuse it.
CALL_GAS = 3_000_000
DEPLOY_GAS = 6_000_000
CALL_TIMEOUT = aiohttp.ClientTimeout(total=30.0)


class AnvilError(Exception):
    """The node answered with a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.data = data


def anvil_binary() -> Path:
    """The executable of this platform's npm package; `make setup` installs it."""
    system = {"linux": "linux", "darwin": "darwin"}.get(sys.platform, "win32")
    arch = "arm64" if platform.machine() in ("arm64", "aarch64") else "amd64"
    name = "anvil.exe" if system == "win32" else "anvil"
    path = REPO_ROOT / "node_modules" / "@foundry-rs" / f"anvil-{system}-{arch}" / "bin" / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run make setup")
    return path


@cache
def load_artifact(name: str) -> dict[str, Any]:
    """{contractName, abi, bytecode} of a contract in contracts/."""
    artifact: dict[str, Any] = json.loads((ARTIFACTS_DIR / f"{name}.json").read_text())
    return artifact


def encode_call(abi_function: str, *args: object) -> str:
    """Call data of e.g. ("transfer(address,uint256)", to, units), as 0x hex."""
    types = _argument_types(abi_function)
    return "0x" + (keccak(text=abi_function)[:4] + encode(types, args)).hex()


def _argument_types(abi_function: str) -> list[str]:
    arguments = abi_function[abi_function.index("(") :]
    if arguments == "()":
        return []
    parsed = parse(arguments)
    assert isinstance(parsed, TupleType)
    return [component.to_type_str() for component in parsed.components]


class Anvil:
    """A fresh chain on a free loopback port, or on `port`. `async with Anvil() as anvil`, or call start() and stop().

    Blocks are mined when its user says so: by mine(), unless `automine` (a block for each transaction) or `block_time`
    (a block every so many seconds) is given. Transactions come from Anvil's unlocked accounts, by `sender_index`.
    """

    def __init__(
        self,
        *,
        block_time: float | None = None,
        automine: bool = False,
        chain_id: int = 31337,
        port: int = 0,
        extra_args: Sequence[str] = (),
    ) -> None:
        self.chain_id = chain_id
        self.accounts: list[str] = []
        self._automine = automine
        self._block_time = block_time
        self._extra_args = extra_args
        self._process: ChildProcess | None = None
        self._session: aiohttp.ClientSession | None = None
        self._port = port
        self._request_id = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self._port}"

    @property
    def process(self) -> ChildProcess:
        assert self._process is not None, "not started"
        return self._process

    async def start(self) -> None:
        command = [str(anvil_binary()), "--host", "127.0.0.1", "--port", str(self._port), "--order", "fifo"]
        command += ["--chain-id", str(self.chain_id), *self._mining_args(), *self._extra_args]
        self._process = ChildProcess(command)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                self._port = await self._read_port()
            self._session = aiohttp.ClientSession(timeout=CALL_TIMEOUT)  # a quarter of httpx's CPU: tests call it often
            self.accounts = await self.rpc("eth_accounts")
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the node and forget its chain; harmless when it is not running."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._process is not None:
            self._process.stop()
            self._process = None

    # --- the node

    async def rpc(self, method: str, *params: object) -> Any:
        """The `result` of a call. Raises AnvilError when the node answers with an error."""
        assert self._session is not None, "not started"
        self._request_id += 1
        request = {"jsonrpc": "2.0", "id": self._request_id, "method": method, "params": params}
        async with self._session.post(self.url, json=request, raise_for_status=True) as response:
            answer = await response.json()
        if error := answer.get("error"):
            raise AnvilError(error["code"], error["message"], error.get("data"))
        return answer["result"]

    def pause(self) -> None:
        """Freeze the node: it accepts connections and answers nothing until resume()."""
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()

    # --- blocks and time

    async def mine(self, blocks: int = 1) -> int:
        """Mine `blocks` blocks (pending transactions go into the first); the new head's number."""
        await self.rpc("anvil_mine", hex(blocks))
        return await self.block_number()

    async def reorg(self, depth: int, transactions: Sequence[tuple[str | dict[str, object], int]] = ()) -> None:
        """Replace the last `depth` blocks by as many others, empty but for `transactions`.

        Each of those is (raw transaction or call object, index of the new block, from 0). What the old blocks held is
        gone: it does not return to the pool.
        """
        await self.rpc("anvil_reorg", depth, [list(pair) for pair in transactions])

    async def set_automine(self, enabled: bool) -> None:
        await self.rpc("evm_setAutomine", enabled)
        self._automine = enabled

    async def mine_every(self, seconds: int) -> None:
        """From now on a block every so many seconds, whether there are transactions or not."""
        await self.rpc("evm_setIntervalMining", seconds)
        self._block_time = seconds

    async def increase_time(self, seconds: int) -> None:
        """Move the clock of the blocks to come; mine one to see it."""
        await self.rpc("evm_increaseTime", seconds)

    async def block_number(self) -> int:
        return int(await self.rpc("eth_blockNumber"), 16)

    async def block(self, number: int | str = "latest", *, full: bool = False) -> dict[str, Any]:
        """A block by number or tag, as the node tells it (hex strings)."""
        tag = number if isinstance(number, str) else hex(number)
        block: dict[str, Any] = await self.rpc("eth_getBlockByNumber", tag, full)
        return block

    async def snapshot(self) -> str:
        snapshot_id: str = await self.rpc("evm_snapshot")
        return snapshot_id

    async def revert(self, snapshot_id: str) -> None:
        """Go back to a snapshot, which can be used only once. Blocks mined since are gone, as in a reorg."""
        assert await self.rpc("evm_revert", snapshot_id), f"no snapshot {snapshot_id}"

    # --- transactions

    async def send_ether(self, sender_index: int, to: str, wei: int) -> str:
        """A plain transfer from an unlocked account; its hash. Not mined here unless the node automines."""
        return await self._send({"from": self.accounts[sender_index], "to": to, "value": hex(wei), "gas": hex(100_000)})

    async def transact(
        self, to: str, abi_function: str, *args: object, value: int = 0, sender_index: int = 0, gas: int = CALL_GAS
    ) -> str:
        """Send a contract call, e.g. transact(token, "mint(address,uint256)", address, 5); its hash, not mined here.

        The gas limit is fixed, not estimated: a call that reverts is mined with status 0 like on a real chain.
        """
        data = encode_call(abi_function, *args)
        sender = self.accounts[sender_index]
        return await self._send({"from": sender, "to": to, "data": data, "value": hex(value), "gas": hex(gas)})

    async def deploy(self, artifact_name: str, *args: object, sender_index: int = 0) -> str:
        """Create a contract of contracts/artifacts and mine it; its EIP-55 address."""
        artifact = load_artifact(artifact_name)
        constructors = [entry for entry in artifact["abi"] if entry["type"] == "constructor"]
        types = [argument["type"] for argument in constructors[0]["inputs"]] if constructors else []
        data = artifact["bytecode"] + encode(types, args).hex()
        tx_hash = await self._send({"from": self.accounts[sender_index], "data": data, "gas": hex(DEPLOY_GAS)})
        receipt = await self.wait_for_receipt(tx_hash)
        assert receipt["status"] == "0x1", f"{artifact_name} was not deployed: {receipt}"
        return to_checksum_address(receipt["contractAddress"])

    async def wait_for_receipt(self, tx_hash: str) -> dict[str, Any]:
        """A transaction's receipt, once it is mined; where nobody else mines, this mines a block."""
        if not self._automine and self._block_time is None:
            await self.mine()
        async with asyncio.timeout(RECEIPT_TIMEOUT_S):
            while (receipt := await self.receipt(tx_hash)) is None:
                await asyncio.sleep(POLL_INTERVAL_S)
        return receipt

    async def receipt(self, tx_hash: str) -> dict[str, Any] | None:
        receipt: dict[str, Any] | None = await self.rpc("eth_getTransactionReceipt", tx_hash)
        return receipt

    async def call(self, to: str, abi_function: str, *args: object, returns: str) -> Any:
        """Read one value, e.g. call(token, "balanceOf(address)", address, returns="uint256")."""
        answer = await self.rpc("eth_call", {"to": to, "data": encode_call(abi_function, *args)}, "latest")
        return decode([returns], bytes.fromhex(answer[2:]))[0]

    async def balance(self, address: str, block: int | str = "latest") -> int:
        """Wei."""
        tag = block if isinstance(block, str) else hex(block)
        return int(await self.rpc("eth_getBalance", address, tag), 16)

    async def set_balance(self, address: str, wei: int) -> None:
        """Ether from nowhere, in no block and no transaction: for gas, or to play a validator withdrawal."""
        await self.rpc("anvil_setBalance", address, hex(wei))

    # --- inside

    async def _send(self, transaction: dict[str, str]) -> str:
        tx_hash: str = await self.rpc("eth_sendTransaction", transaction)
        return tx_hash

    def _mining_args(self) -> list[str]:
        if self._block_time is not None:
            return ["--block-time", str(self._block_time)]
        return [] if self._automine else ["--no-mining"]

    async def _read_port(self) -> int:
        """Port 0 lets the node choose (no race for a free one); it prints the port when it listens."""
        while True:
            log = self.process.log()
            if match := re.search(r"Listening on 127\.0\.0\.1:(\d+)", log):
                return int(match[1])
            if not self.process.is_running:
                raise RuntimeError(f"anvil ended at once:\n{log}")
            await asyncio.sleep(POLL_INTERVAL_S)

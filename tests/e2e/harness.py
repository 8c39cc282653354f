"""A Paywatch installation as an operator runs it: real commands in a folder of their own, spoken to over HTTP only."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import httpx
from pydantic import SecretStr

from app.blockchain.signer import Signer
from app.blockchain.wallet import NATIVE_BRANCH, TOKEN_BRANCH
from devnet.ports import free_port, give_back
from tests.support.forks import ForkedProgram
from tests.support.process import ChildProcess
from tests.support.secrets import DATABASE_PASSWORD, MNEMONIC, RPC_KEY, find_secret
from tests.support.secrets import E2E_API_KEY as API_KEY
from tests.support.secrets import E2E_SECRET_KEY as SECRET_KEY
from tests.support.secrets import E2E_WEBHOOK_SECRET as WEBHOOK_SECRET

T = TypeVar("T")

REPO_ROOT: Final = Path(__file__).resolve().parents[2]
START_S: Final = 90.0  # an idle machine takes four seconds; this one may be busy
DEADLINE_S: Final = 60.0  # for what has no bound in the contract
# Of the contract's bounds tests/core/test_limits.py sees that the limits keep them; here a busy machine takes its time.
STOP_S: Final = 10.0 + 30.0  # DESIGN section 8: SIGTERM ends a process with exit code 0 within the first
TAKEOVER_S: Final = 30.0 + DEADLINE_S  # DESIGN section 2.5: so does a killed worker's work go on elsewhere
POLL_S: Final = 0.05
POLL_MAX_S: Final = 0.4  # what has not happened for a while is asked for less often: asking takes what it waits for

_TRANSACTIONS: Final = (
    "SELECT pid, xact_start FROM pg_stat_activity "
    "WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
)
# The account m/44'/60'/0' of the mnemonic.
XPUB: Final = (
    "xpub6Bh6Cg7bvjFdW6VEAaZmsyhZh86WdJ9Kr5aqqY5LN7UFLpxTrxsiys213UCu8MAYjcq5JhF7jzZXvruGfWfPbxqsByNNhwWaNQRuhP3JcC3"
)


class Program:
    """One command. Its output goes on to be readable after its end."""

    def __init__(self, arguments: Sequence[str], env: dict[str, str], cwd: Path, forked: bool) -> None:
        self.name = " ".join(Path(argument).name for argument in arguments)
        self._child: ChildProcess | ForkedProgram = (
            ForkedProgram(arguments, env=env, cwd=cwd)
            if forked and arguments[0] != "-c"
            else ChildProcess([sys.executable, *arguments], env=env, cwd=cwd)
        )
        self._output: str | None = None

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def is_running(self) -> bool:
        return self._output is None and self._child.is_running

    @property
    def output(self) -> str:
        return self._child.log() if self._output is None else self._output

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended, and a forked one is told so a moment later
            os.kill(self.pid, number)

    def pause(self) -> None:
        self._child.pause()

    def resume(self) -> None:
        self._child.resume()

    def kill(self) -> None:
        """kill -9, and wait for the end; harmless when it has ended."""
        if self._output is not None:
            return
        if self._child.is_running:
            self.send(signal.SIGKILL)
            self._child.wait()
        self._finish()

    async def ended(self, timeout_s: float) -> int:
        """Its exit code, once it has ended by itself."""
        await until(lambda: soon(not self._child.is_running), f"the end of {self.name}", timeout_s)
        code = self._child.exit_code
        self._finish()
        assert code is not None
        return code

    def _finish(self) -> None:
        self._output = self._child.log()
        self._child.stop()


class House:
    """One installation: embedded unless it has a `redis_url`. The RPC URLs that chains.yaml holds carry a key.

    Its commands are `forked` where their start, as an operator has it, is not what the test is about.
    """

    def __init__(
        self,
        chains_yaml: str,
        *,
        database_url: str = "",
        redis_url: str = "",
        forked: bool = True,
        **settings: str,
    ) -> None:
        self._forked = forked
        self.shown_key = ""
        # A short name: the path of the embedded Redis' socket, inside it, has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="pw-e2e-"))
        (self.folder / "chains.yaml").write_text(chains_yaml)
        self.port = free_port()
        self.programs: list[Program] = []
        self.server: Program | None = None
        self.workers: list[Program] = []
        self._client: httpx.AsyncClient | None = None
        self.database_url = database_url
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("PAYWATCH_")}
        self._env |= {
            "PYTHONPATH": str(REPO_ROOT),
            "TMPDIR": str(self.folder),  # what a killed server could not remove goes with the folder
            "PAYWATCH_CHAINS_FILE": "chains.yaml",
            "PAYWATCH_PORT": str(self.port),
            "PAYWATCH_API_KEY": API_KEY,
            "PAYWATCH_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "PAYWATCH_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
        }
        if database_url:
            self._env["PAYWATCH_DATABASE_URL"] = database_url.replace("postgres@", f"postgres:{DATABASE_PASSWORD}@")
        if redis_url:
            self._env |= {"PAYWATCH_REDIS_URL": redis_url, "PAYWATCH_XPUB": XPUB, "PAYWATCH_SECRET_KEY": SECRET_KEY}
        else:
            self._env["PAYWATCH_MNEMONIC"] = MNEMONIC
        for name, value in settings.items():
            self._env[f"PAYWATCH_{name}"] = value
            if not value:
                del self._env[f"PAYWATCH_{name}"]

    @property
    def settings(self) -> dict[str, str]:
        """The variables of every process here, for a command that is run elsewhere than in the folder."""
        mine = {name: value for name, value in self._env.items() if name.startswith("PAYWATCH_")}
        return mine | {"PAYWATCH_CHAINS_FILE": str(self.folder / "chains.yaml")}

    # --- processes

    def run(self, *arguments: str, **settings: str) -> Program:
        """Start a command of ours, e.g. run("server.py") or run("-m", "app.workers"); `settings` are its alone."""
        command = [str(REPO_ROOT / part) if part.endswith(".py") else part for part in arguments]
        mine = {f"PAYWATCH_{name}": value for name, value in settings.items()}
        program = Program(command, self._env | mine, self.folder, self._forked)
        self.programs.append(program)
        return program

    def launch(self, workers: int = 0) -> None:
        """Start what does not run, and wait for nothing."""
        if self.server is None or not self.server.is_running:
            self.server = self.run("server.py")
        self.workers = [worker for worker in self.workers if worker.is_running]
        while len(self.workers) < workers:
            self.workers.append(self.run("-m", "app.workers"))

    async def start(self, workers: int = 0) -> None:
        """Start what does not run; ready when the server says so and `workers` workers have said that they work."""
        self.launch(workers)
        await self.ready()
        for worker in self.workers:
            await until(lambda it=worker: soon(_started(it)), "a worker's start", START_S)

    async def ready(self) -> None:
        server = self.server
        assert server is not None

        async def answers() -> bool:
            if not server.is_running:
                raise AssertionError(f"the server ended at once:\n{server.output}")
            return (await self.client.get("/health/ready")).status_code == 200

        await until(answers, "/health/ready", START_S)

    async def migrate(self) -> None:
        program = self.run("migrate.py", "upgrade")
        assert await program.ended(START_S) == 0, program.output

    def kill(self) -> None:
        """kill -9 of everything that runs."""
        for program in self.programs:
            if program.is_running:
                program.send(signal.SIGKILL)
        for program in self.programs:
            program.kill()

    async def close(self) -> None:
        """End everything, and fail if any of it has ever printed a secret."""
        self.kill()
        if self._client is not None:
            await self._client.aclose()
        shutil.rmtree(self.folder, ignore_errors=True)
        give_back(self.port)
        assert_no_secrets(self.programs, shown=self.shown_key)

    def logs(self, chars: int = 20_000) -> str:
        """What each process printed, or the last of it."""
        return "\n".join(f"--- {it.name} (pid {it.pid})\n{it.output[-chars:]}" for it in self.programs)

    # --- HTTP

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> httpx.AsyncClient:
        if self._client is None:
            headers = {"Authorization": f"Bearer {API_KEY}"}
            self._client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60.0, trust_env=False)
        return self._client

    async def get(self, path: str, **params: Any) -> Any:
        """The JSON of a 200 answer."""
        response = await self.client.get(path, params=params)
        assert response.status_code == 200, f"{path}: {response.status_code} {response.text}"
        return response.json()

    async def create(self, token: str, amount: str, idempotency_key: str | None = None, **body: Any) -> dict[str, Any]:
        """A payment of the chain `devnet`."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        wanted = {"chain": "devnet", "token": token, "amount": amount} | body
        response = await self.client.post("/v1/payments", json=wanted, headers=headers)
        assert response.status_code == 201, f"{response.status_code} {response.text}"
        payment: dict[str, Any] = response.json()
        return payment

    async def payment(self, payment_id: str) -> dict[str, Any]:
        payment: dict[str, Any] = await self.get(f"/v1/payments/{payment_id}")
        return payment

    async def events(self, payment_id: str) -> list[dict[str, Any]]:
        """A payment's audit trail, by version."""
        page = await self.get(f"/v1/payments/{payment_id}/events", limit=100)
        assert page["next_cursor"] is None
        return list(page["data"])

    async def reaches(self, payment_id: str, *statuses: str, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """The payment, once it has one of the statuses."""
        payment: dict[str, Any] = {}

        async def there() -> bool:
            nonlocal payment
            payment = await self.payment(payment_id)
            return payment["status"] in statuses

        try:
            await until(there, f"{payment_id} to be {' or '.join(statuses)}", timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {payment}\n{self.logs(3_000)}") from error
        return payment

    async def has_told(self) -> None:
        """Wait until no webhook is due or under way: a killed sender's wait for half a minute."""

        async def nothing_pending() -> bool:
            return not (await self.get("/v1/webhook_deliveries", status="pending"))["data"]

        await until(nothing_pending, "the webhooks to be delivered", DEADLINE_S)

    async def cursor_reaches(self, block: int, timeout_s: float = DEADLINE_S) -> None:
        """Wait until the chain `devnet` was scanned up to `block`."""

        async def there() -> bool:
            chains = {chain["name"]: chain for chain in (await self.get("/v1/chains"))["data"]}
            return bool((chains["devnet"]["cursor"] or 0) >= block)

        await until(there, f"the cursor at block {block}", timeout_s)


async def until(probe: Callable[[], Awaitable[T]], what: str, timeout_s: float) -> T:
    """The first true answer of `probe`; a server that does not answer has not said it yet."""
    deadline = time.monotonic() + timeout_s
    pause_s = POLL_S
    last: object = None
    while True:
        try:
            answer = await probe()
        except (httpx.HTTPError, OSError) as error:
            last = f"{type(error).__name__}: {error}"
        else:
            if answer:
                return answer
            last = answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s for {what}; at last: {last}")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.2, POLL_MAX_S)


def chain_yaml(
    rpc_url: str,
    token: str = "",
    *,
    name: str = "devnet",
    chain_id: int = 31337,
    confirmations: int = 2,
    depth: int = 64,
    sweep: str = "",
    ws_url: str = "null",
) -> str:
    """One entry of chains.yaml, to be put under `chains:`; its tokens are USDC at `token`, if given."""
    tokens = f'[{{symbol: USDC, address: "{token}", decimals: 6}}]' if token else "[]"
    return f"""
  - name: {name}
    chain_id: {chain_id}
    rpc_url: "{with_key(rpc_url)}"
    ws_url: {ws_url}
    confirmations_required: {confirmations}
    finality: {{depth: {depth}}}
    poll_interval: 0.2
    native: {{symbol: ETH, decimals: 18}}
    tokens: {tokens}
    sweep: {sweep or "{mode: off}"}
"""


def chains_yaml(*chains: str) -> str:
    return "chains:" + "".join(chains)


def with_key(rpc_url: str) -> str:
    """The URL as a provider gives it, with the customer's key in it."""
    return f"{rpc_url}/?key={RPC_KEY}"


@cache
def _know_the_wallet() -> None:
    """Other processes sign with it: have its keys known, those of the first payments."""
    signer = Signer(SecretStr(MNEMONIC))
    for branch in (NATIVE_BRANCH, TOKEN_BRANCH):
        for index in range(1, 40):
            signer.account(branch, index)


def assert_no_secrets(programs: Iterable[Program], *more: str, shown: str = "") -> None:
    """`shown`: the API key of a first start, which is told once."""
    _know_the_wallet()
    for program in programs:
        output = program.output.replace(shown, "", 1) if shown else program.output
        for at in (find_secret(output), *(output.find(secret) for secret in more)):
            assert at < 0, f"{program.name} printed a secret: …{output[max(at - 300, 0) : at + 100]}…"


def children(pid: int) -> list[int]:
    """Processes that a process has started and that have not ended (Linux)."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since it was listed
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet waited for does not (Linux)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


async def gone(pids: Iterable[int]) -> None:
    """Wait until none of these processes runs."""
    wanted = list(pids)
    await until(lambda: soon(not any(is_alive(pid) for pid in wanted)), f"the end of {wanted}", DEADLINE_S)


async def freeze(program: Program, database_url: str) -> None:
    """Pause it while it is in no transaction on PostgreSQL, so that it holds no lock that others wait for."""
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))

    async def open_transactions() -> set[asyncpg.Record]:
        return set(await connection.fetch(_TRANSACTIONS))

    async def is_frozen() -> bool:
        program.pause()
        held = await open_transactions()
        for _ in range(20):  # what others do ends meanwhile
            if not held:
                return True
            await asyncio.sleep(POLL_S)
            held &= await open_transactions()
        program.resume()
        return False

    try:
        await until(is_frozen, f"{program.name} to be in no transaction", DEADLINE_S)
    except BaseException:
        program.resume()
        raise
    finally:
        await connection.close()


async def soon(value: T) -> T:
    """For a probe that has nothing to wait for."""
    return value


def _started(worker: Program) -> bool:
    assert worker.is_running, f"a worker ended at once:\n{worker.output}"
    return "workers started" in worker.output

"""The real parts are real: each starts, does its work, and is gone when it is stopped."""

import asyncio
import os
import secrets
import socket
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx
import pytest
import redis.asyncio as redis_client
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from standardwebhooks import Webhook

from app.blockchain.signer import SigningAccount
from app.blockchain.wallet import from_mnemonic, new_mnemonic
from app.core.secrets import new_api_key, new_webhook_secret
from devnet.ports import free_port, give_back, is_free
from tests.support.anvil import Anvil, AnvilError
from tests.support.postgres import Postgres
from tests.support.process import ChildProcess
from tests.support.receiver import HANG, Receiver, Reply
from tests.support.redis import RedisServer
from tests.support.secrets import API_KEY, find_secret

ALICE = "0x00000000000000000000000000000000000A11cE"
BOB = "0x0000000000000000000000000000000000000B0b"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
IP_LOCAL_PORT_RANGE = 51  # of linux/in.h, since Linux 6.3
TRANSFER_TOPIC = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


def process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- Anvil


async def test_a_block_is_mined_only_when_the_test_says_so(anvil: Anvil) -> None:
    tx_hash = await anvil.send_ether(0, ALICE, 10**18)
    assert await anvil.block_number() == 0
    assert await anvil.receipt(tx_hash) is None

    assert await anvil.mine() == 1
    assert (await anvil.block())["transactions"] == [tx_hash]
    assert await anvil.balance(ALICE) == 10**18
    assert await anvil.balance(ALICE, block=0) == 0
    assert await anvil.mine(3) == 4


async def test_a_reorg_replaces_blocks_and_takes_their_payments_back(anvil: Anvil) -> None:
    await anvil.mine(2)
    await anvil.send_ether(0, ALICE, 7)
    await anvil.mine()
    before = await anvil.block(3)

    await anvil.reorg(2)

    after = await anvil.block(3)
    assert await anvil.block_number() == 3
    assert after["hash"] != before["hash"]
    assert after["parentHash"] == (await anvil.block(2))["hash"]
    assert await anvil.balance(ALICE) == 0


async def test_a_snapshot_brings_the_chain_back(anvil: Anvil) -> None:
    await anvil.mine(2)
    snapshot_id = await anvil.snapshot()
    await anvil.mine(5)
    await anvil.revert(snapshot_id)
    assert await anvil.block_number() == 2


async def test_time_can_be_moved_ahead(anvil: Anvil) -> None:
    before = int((await anvil.block())["timestamp"], 16)
    await anvil.increase_time(3600)
    await anvil.mine()
    assert int((await anvil.block())["timestamp"], 16) >= before + 3600


async def test_a_chain_can_automine_under_another_chain_id() -> None:
    async with Anvil(automine=True, chain_id=8453) as anvil:
        assert int(await anvil.rpc("eth_chainId"), 16) == 8453
        tx_hash = await anvil.send_ether(1, ALICE, 1)
        assert (await anvil.wait_for_receipt(tx_hash))["blockNumber"] == "0x1"
        await anvil.set_automine(False)
        await anvil.send_ether(1, ALICE, 1)
        assert await anvil.block_number() == 1


async def test_a_chain_can_mine_by_the_clock() -> None:
    async with Anvil(block_time=0.1) as anvil:
        await anvil.wait_for_receipt(await anvil.send_ether(0, ALICE, 1))
        assert await anvil.balance(ALICE) == 1


async def test_the_nodes_errors_are_typed(anvil: Anvil) -> None:
    with pytest.raises(AnvilError, match="Method not found") as caught:
        await anvil.rpc("eth_noSuchThing")
    assert caught.value.code == -32601


async def test_a_paused_node_hangs_and_a_stopped_one_is_gone() -> None:
    async with Anvil() as anvil:
        pid = anvil.process.pid
        anvil.pause()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anvil.rpc("eth_blockNumber")
        anvil.resume()
        assert await anvil.block_number() == 0
        anvil.pause()
    assert not process_exists(pid)


# --- contracts


async def test_a_token_can_be_minted_and_paid(anvil: Anvil) -> None:
    token = await anvil.deploy("TestToken", "USD Coin", "USDC", 6)
    payer = anvil.accounts[0]
    await anvil.transact(token, "mint(address,uint256)", payer, 100)
    await anvil.transact(token, "transfer(address,uint256)", ALICE, 25)
    await anvil.mine()

    assert await anvil.call(token, "symbol()", returns="string") == "USDC"
    assert await anvil.call(token, "decimals()", returns="uint8") == 6
    assert await anvil.call(token, "balanceOf(address)", ALICE, returns="uint256") == 25
    assert await anvil.call(token, "balanceOf(address)", payer, returns="uint256") == 75


async def test_a_forwarder_pays_ether_where_no_top_level_transaction_shows_it(anvil: Anvil) -> None:
    forwarder = await anvil.deploy("Forwarder")
    await anvil.transact(forwarder, "pay(address)", ALICE, value=5)
    await anvil.transact(forwarder, "batchEther(address[],uint256[])", [ALICE, BOB, ALICE], [1, 2, 3], value=6)
    await anvil.transact(forwarder, "payBySelfdestruct(address)", BOB, value=9)
    await anvil.mine()

    assert await anvil.balance(ALICE) == 5 + 1 + 3
    assert await anvil.balance(BOB) == 2 + 9
    block = await anvil.block(full=True)
    assert {transaction["to"] for transaction in block["transactions"]} == {forwarder.lower()}
    traces = await anvil.rpc("trace_block", block["number"])
    assert "suicide" in {trace["type"] for trace in traces}


async def test_a_forwarder_pays_one_recipient_twice_in_one_transaction(anvil: Anvil) -> None:
    token, forwarder = await anvil.deploy("TestToken", "T", "T", 18), await anvil.deploy("Forwarder")
    await anvil.transact(token, "mint(address,uint256)", anvil.accounts[0], 100)
    await anvil.transact(token, "approve(address,uint256)", forwarder, 100)
    batch = "batchToken(address,address[],uint256[])"
    tx_hash = await anvil.transact(forwarder, batch, token, [ALICE, BOB, ALICE], [1, 2, 1])
    receipt = await anvil.wait_for_receipt(tx_hash)

    paid = [log["topics"][2][-40:] for log in receipt["logs"] if log["topics"][0] == TRANSFER_TOPIC]
    assert paid == [ALICE[2:].lower(), BOB[2:].lower(), ALICE[2:].lower()]


async def test_a_payment_that_reverts_is_mined_and_pays_nobody(anvil: Anvil) -> None:
    token, forwarder = await anvil.deploy("TestToken", "T", "T", 18), await anvil.deploy("Forwarder")
    await anvil.transact(token, "mint(address,uint256)", anvil.accounts[0], 100)
    await anvil.transact(token, "approve(address,uint256)", forwarder, 100)
    tx_hash = await anvil.transact(forwarder, "payAndRevert(address,address,uint256)", token, ALICE, 10, value=3)
    receipt = await anvil.wait_for_receipt(tx_hash)

    assert (receipt["status"], receipt["logs"]) == ("0x0", [])
    assert await anvil.balance(ALICE) == 0
    assert await anvil.call(token, "balanceOf(address)", ALICE, returns="uint256") == 0


async def test_odd_tokens_are_odd(anvil: Anvil) -> None:
    payer = anvil.accounts[0]
    no_return, fee, blacklist = [
        await anvil.deploy(name, name, "ODD", 6) for name in ("NoReturnToken", "FeeToken", "BlacklistToken")
    ]
    for token in (no_return, fee, blacklist):
        await anvil.transact(token, "mint(address,uint256)", payer, 1000)
    await anvil.transact(blacklist, "setBlacklisted(address,bool)", BOB, True)
    await anvil.mine()

    silent = await anvil.rpc("eth_call", {"from": payer, "to": no_return, "data": transfer_data(ALICE, 1)}, "latest")
    assert silent == "0x"

    await anvil.wait_for_receipt(await anvil.transact(fee, "transfer(address,uint256)", ALICE, 1000, sender_index=0))
    assert await anvil.call(fee, "balanceOf(address)", ALICE, returns="uint256") == 990

    refused = await anvil.wait_for_receipt(await anvil.transact(blacklist, "transfer(address,uint256)", BOB, 1))
    allowed = await anvil.wait_for_receipt(await anvil.transact(blacklist, "transfer(address,uint256)", ALICE, 1))
    assert (refused["status"], allowed["status"]) == ("0x0", "0x1")


def transfer_data(to: str, units: int) -> str:
    return f"0xa9059cbb{to[2:]:0>64}{units:064x}"


# --- databases


async def test_a_database_of_the_tests_own_takes_and_gives(database_url: str) -> None:
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE thing (name TEXT)"))
        await connection.execute(text("INSERT INTO thing VALUES ('one')"))
        assert (await connection.execute(text("SELECT name FROM thing"))).scalars().all() == ["one"]
    await engine.dispose()


async def test_a_database_can_be_copied_from_a_template_and_dropped(postgres: Postgres) -> None:
    template_url = await postgres.create_database()
    connection = await connect(template_url)
    await connection.execute("CREATE TABLE thing (name TEXT)")
    await connection.close()

    url = await postgres.create_database(template=make_url(template_url).database)
    connection = await connect(url)  # still open when it is dropped
    assert await connection.fetch("SELECT * FROM thing") == []
    await postgres.drop_database(url)
    await postgres.drop_database(template_url)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await connect(url)
    connection.terminate()


async def test_an_interrupted_server_keeps_its_databases_and_a_stopped_one_is_gone() -> None:
    with Postgres() as server:
        url = await server.create_database("kept")
        server.interrupt()
        with pytest.raises(OSError):
            await connect(url)
        server.start()
        connection = await connect(url)
        assert int((await connection.fetchval("SHOW server_version")).split(".")[0]) >= 15
        await connection.close()
        pid = server.process.pid
    assert not process_exists(pid)


async def connect(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))


# --- Redis


async def test_redis_starts_empty_for_every_test(redis_url: str, redis_server: RedisServer) -> None:
    async with redis_client.Redis.from_url(redis_url) as client:
        assert await client.keys() == []
        await client.set("key", "value")
        await redis_server.flush()
        assert await client.get("key") is None


async def test_redis_comes_back_at_the_same_address_with_nothing_in_it() -> None:
    async with RedisServer() as server:
        url, pid = server.url, server.process.pid
        async with redis_client.Redis.from_url(url) as client:
            await client.set("key", "value")
            server.stop()
            assert not process_exists(pid)
            with pytest.raises(redis_client.ConnectionError):
                await client.get("key")
            await server.start()
            assert server.url == url
            assert await client.get("key") is None


# --- the webhook receiver


def test_what_was_made_while_the_suite_runs_is_known_for_a_secret() -> None:
    key, account = secrets.token_bytes(32), from_mnemonic(new_mnemonic())
    SigningAccount(key)
    for secret in (
        new_mnemonic(),
        new_api_key(),
        new_webhook_secret(),
        str(account.xprivate_key()),
        key.hex(),
        API_KEY,
    ):
        assert find_secret(f'{{"event": "x", "said": "it was {secret}, he said"}}') >= 0
    for harmless in (
        secrets.token_hex(32),
        "pwk_…",
        "whsec_[redacted]",
        "they open the door and wait for an hour or so",
    ):
        assert find_secret(f'{{"event": "x", "said": "{harmless} {harmless}"}}') == -1


def signed(body: str, secret: str = SECRET, message_id: str = "evt_1") -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, body),
    }


async def test_the_receiver_tells_a_good_signature_from_a_forged_one(receiver: Receiver) -> None:
    receiver.secret = SECRET
    body = '{"type": "payment.created", "data": {}}'
    async with httpx.AsyncClient(trust_env=False, timeout=60.0) as client:
        await client.post(receiver.url, content=body, headers=signed(body))
        await client.post(receiver.url_for("/other"), content=body + " ", headers=signed(body))
        await client.post(receiver.url, content=body)

    good, tampered, unsigned = await receiver.wait_for_count(3)
    assert good.verified
    assert (good.type, good.webhook_id, good.path) == ("payment.created", "evt_1", "/webhooks")
    assert not tampered.verified
    assert tampered.path == "/other"
    assert not unsigned.verified


async def test_the_receiver_answers_as_it_is_told(receiver: Receiver) -> None:
    receiver.answer(500, Reply(302, headers={"location": "http://127.0.0.1:1/"}), then=204)
    async with httpx.AsyncClient(trust_env=False, timeout=60.0) as client:
        answers = [await client.post(receiver.url, content=b"{}") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [500, 302, 204, 204]
    assert answers[1].headers["location"] == "http://127.0.0.1:1/"
    assert [request.reply.status for request in receiver.requests] == [500, 302, 204, 204]


async def test_the_receiver_can_hang_and_can_be_away(receiver: Receiver) -> None:
    url = receiver.url
    async with httpx.AsyncClient(trust_env=False, timeout=0.2) as client:
        receiver.answer(HANG)
        with pytest.raises(httpx.ReadTimeout):
            await client.post(url, content=b"{}")
        await receiver.stop()
        with pytest.raises(httpx.ConnectError):
            await client.post(url, content=b"{}")
        await receiver.start()
        assert (await client.post(url, content=b"{}")).status_code == 200
    assert len(receiver.requests) == 2


async def test_waiting_in_vain_says_what_did_arrive(receiver: Receiver) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=60.0) as client:
        await client.post(receiver.url_for("/seen"), content=b"{}")
    with pytest.raises(TimeoutError, match="/seen"):
        await receiver.wait_for_count(2, timeout_s=0.05)


# --- ports


@pytest.mark.skipif(sys.platform != "linux", reason="others do not keep a port without listening there")
async def test_a_port_is_given_to_nobody_else_while_its_server_is_away() -> None:
    """Neither to a server that asks for any port nor to a connection, which have just this one left to be given."""
    port = free_port()
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", port):
        assert not is_free(port)
    only_that = struct.pack("I", port | port << 16)
    async with Receiver() as receiver:
        address = "127.0.0.1", int(receiver.url_for("").rpartition(":")[2])
        for ask in (lambda it: it.bind(("127.0.0.1", 0)), lambda it: it.connect(address)):
            with socket.socket() as other:
                try:
                    other.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, only_that)
                except OSError:
                    pytest.skip("this kernel lets nobody choose a range")
                with pytest.raises(OSError, match=r"[Aa]ddress"):
                    ask(other)
    give_back(port)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


# --- processes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel of others knows no such signal")
def test_a_child_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    starter = (
        "import os, signal; from tests.support.process import ChildProcess\n"
        "print(ChildProcess(['sleep', '60']).pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", starter],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},  # its log stays behind
        text=True,
        timeout=60,
        check=False,
    )
    deadline = time.monotonic() + 60
    while is_alive(int(parent.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """False for a zombie too: an orphan has ended although nobody may have asked how."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_stopped_child_can_be_stopped_again() -> None:
    child = ChildProcess(["sleep", "60"])
    assert child.is_running
    child.stop()
    child.stop()
    assert not child.is_running

"""Goal: whatever a node or its provider says, the caller learns what to do: wait, ask less, ask another one, or stop.

Every message of the table was really sent, but for the few that say "made up". `seen` is where: an issue or pull
request, a provider's documentation, or a file of a public repository. A code that it leaves out is the usual one.
"""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.blockchain import errors
from app.blockchain.errors import (
    RETRY_AFTER_MAX_S,
    BatchTooLargeError,
    BlockUnknownError,
    FatalError,
    InvalidAnswerError,
    MethodMissingError,
    NodeBehindError,
    NodeError,
    PrunedError,
    RangeTooWideError,
    RateLimitedError,
    TransientError,
    from_http,
    from_rpc,
)

NO_NUMBERS: dict[str, Any] = {}
HASH = "0x74b0d3cf97156502c9bb929fbfbd658ca29257edaf9d73aef0b9414b9bd40b6c"


class Said(NamedTuple):
    provider: str
    code: int
    message: str
    extras: dict[str, Any] = NO_NUMBERS
    method: str = "eth_getLogs"
    data: Any = None
    seen: str = ""


def wide(suggested: tuple[int, int] | None = None, max_blocks: int | None = None) -> dict[str, Any]:
    return {"suggested": suggested, "max_blocks": max_blocks}


def wait(seconds: float | None) -> dict[str, Any]:
    return {"retry_after_s": seconds}


# fmt: off
SAID: dict[type[NodeError], list[Said]] = {
    RangeTooWideError: [
        Said("Alchemy, free plan", -32600,
             "Under the Free tier plan, you can make eth_getLogs requests with up to a 10 block range. Based on "
             "your parameters, this block range should work: [0x1180fca, 0x1180fd3]. Upgrade to PAYG for "
             "expanded block range.", wide((0x1180FCA, 0x1180FD3), 10),
             seen="jaxernst/lasso-rpc adapters/alchemy.ex"),
        Said("Alchemy", -32600,
             "You can make eth_getLogs requests with up to a 500 block range. Based on your parameters, this "
             "block range should work: [0x123c9b2, 0x123cba5]", wide((0x123C9B2, 0x123CBA5), 500),
             seen="BobTheBuidler/dank_mids#772"),
        Said("Alchemy, too many logs", -32602,
             "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range and no "
             "limit on the response size, or you can request any block range with a cap of 10K logs in the "
             "response. Based on your parameters and the response size limit, this block range should work: "
             "[0x0, 0xd043b8]", wide((0, 0xD043B8), 2_000), seen="ethers-io/ethers.js#4703"),
        Said("Alchemy of 2020", -32602, "Log response size exceeded. Please reduce query block range.", wide(),
             seen="bancorprotocol/webapp#523"),
        Said("Infura, too many logs", -32005,
             "query returned more than 10000 results. Try with this block range [0xBDE5F8, 0x102DBCC].",
             wide((0xBDE5F8, 0x102DBCC)), seen="ethers-io/ethers.js#4703"),
        Said("Infura, the range in data only", -32005, "query returned more than 10000 results",
             wide((0xBDE5F8, 0x102DBCC)), data={"from": "0xBDE5F8", "limit": 10000, "to": "0x102DBCC"},
             seen="ethers-io/ethers.js#4703"),
        Said("Infura, too many blocks", -32602, "range 1000000 exceeds limit of 10000", wide(max_blocks=10_000),
             seen="INFURA/infura#237"),
        Said("Infura, ten seconds are over", -32005, "query timeout exceeded", wide(),
             seen="rotki/rotki node_inquirer.py"),
        Said("QuickNode", -32614, "eth_getLogs is limited to a 10,000 range", wide(max_blocks=10_000),
             seen="OffchainLabs/arbitrum-sdk#609"),
        Said("1RPC", -32602, "eth_getLogs is limited to 0 - 50 blocks range", wide(max_blocks=50),
             seen="ponder-sh/ponder getLogsRetryHelper.ts"),
        Said("1RPC, too many bytes", -32000, "response size should not greater than 10000000 bytes", wide(),
             seen="ponder-sh/ponder getLogsRetryHelper.ts"),
        Said("Ankr, gateway", -32062, "Block range is too large", wide(),
             seen="ankr.com/docs/rpc-service/errors/per-chain-quirks"),
        Said("Ankr", -32600, "block range is too wide", wide(), seen="ponder-sh/ponder getLogsRetryHelper.ts"),
        Said("Ankr, TAC", -32000, "maximum [from, to] blocks distance: 10000", wide(max_blocks=10_000),
             seen="ponder-sh/ponder#1940"),
        Said("dRPC, free plan", 35, "ranges over 10000 blocks are not supported on freetier", wide(max_blocks=10_000),
             seen="berachain.drpc.org, measured by a public indexer"),
        Said("PublicNode", -32701, "exceed maximum block range: 50000", wide(max_blocks=50_000),
             seen="berachain-rpc.publicnode.com, by the same"),
        Said("LlamaRPC", -32603, "eth_getLogs range is too large, max is 1k blocks", wide(max_blocks=1_000),
             seen="jaxernst/lasso-rpc error_classification_test.exs"),
        Said("Cloudflare", -32047,
             "Invalid eth_getLogs request. 'fromBlock'-'toBlock' range too large. Max range: 800",
             wide(max_blocks=800), seen="ponder-sh/ponder getLogsRetryHelper.ts"),
        Said("thirdweb", -32005, "Log response size exceeded. Maximum allowed number of requested blocks is 1000",
             wide(max_blocks=1_000), seen="optimism.rpc.thirdweb.com, a public test of 2026"),
        Said("Coinbase", -32005, "please limit the query to at most 1000 blocks", wide(max_blocks=1_000),
             seen="ponder-sh/ponder getLogsRetryHelper.ts"),
        Said("Chainstack", -32602, "Block range limit exceeded. See more details at "
             "https://docs.chainstack.com/docs/limits#evm-range-limits.", wide(),
             seen="ponder-sh/ponder getLogsRetryHelper.ts"),
        Said("Tenderly, the reason in data", -32602, "invalid params", wide(max_blocks=2_000),
             data={"error_id": "4ed94073-0317-4648-a167-107fba5f44b3",
                   "payload": "range 9009594 is bigger than range limit 2000"}, seen="bobanetwork/boba_legacy#827"),
        Said("Blast API, the reason in data", -32602, "Invalid params", wide(max_blocks=500),
             data={"range": "the range 32654438 - 33850215 exceeds the range allowed for your plan (1195777 > 500). "
             "Upgrade your plan to get a higher range! Head over to https://bit.ly/blastplanupgrade for more "
             "information."}, seen="vegaprotocol/vega#11109"),
        Said("geth, --rpc.rangelimit", -32602, "exceed maximum block range 1000", wide(max_blocks=1_000),
             seen="ethereum/go-ethereum#33163"),
        Said("BSC dataseed", -32000, "exceed maximum block range: 5000", wide(max_blocks=5_000),
             seen="AlphaWallet/alpha-wallet-android#2736"),
        Said("Erigon, blocks", -32000, "query block range exceeds server limit, narrow your filter: 1000",
             wide(max_blocks=1_000), seen="erigontech/erigon#19721"),
        Said("Erigon, logs", -32000, "query returns too many logs, narrow your filter: 20000", wide(),
             seen="trezor/blockbook#1692"),
        Said("CDK Erigon", -32005, "block range too large, max range: 10000", wide(max_blocks=10_000),
             seen="0xPolygon/cdk-erigon#1706"),
        Said("Nethermind", -32005, "Too many logs requested. Max logs per response is 10000", wide(),
             seen="a public log scanner's test, 2026"),
        Said("reth, blocks", -32602, "query exceeds max block range 100000", wide(max_blocks=100_000),
             seen="paradigmxyz/reth#8558"),
        Said("reth, logs", -32602, "query exceeds max results 20000, retry with the range 25766988-25775072",
             wide((25_766_988, 25_775_072)), seen="paradigmxyz/reth#23810"),
        Said("Besu", -32005, "Requested range exceeds maximum RPC range limit", wide(),
             seen="besu-eth/besu#5209 and RpcErrorType.java"),
        Said("Arbitrum nitro", -32000, "logs matched by query exceeds limit of 10000", wide(),
             seen="OffchainLabs/nitro#4736"),
        Said("Avalanche", -32000, "requested too many blocks from 0 to 5000000, maximum is set to 1024",
             wide(max_blocks=1_024), seen="ponder-sh/ponder getLogsRetryHelper.ts"),
        Said("Moonbeam", -32603, "block range is too wide (maximum 1024)", wide(max_blocks=1_024),
             seen="moonbeam-foundation/moonbeam#3250"),
        Said("Morph", -32000,
             "block range is larger than max block range, block range = 5120, max block range = 5000",
             wide(max_blocks=5_000), seen="enviodev/hyperindex#605"),
        Said("Polygon zkEVM", -32602, "logs are limited to a 10000 block range", wide(max_blocks=10_000),
             seen="0xPolygon/zkevm-node#3136"),
        Said("Sentio", -32000, "block span 120000 of range [1, 120001] exceeds the limit 10000",
             wide(max_blocks=10_000), seen="a public log scanner's test, 2026"),
        Said("OP proxyd", -32020, "backend response too large", seen="ponder-sh/ponder getLogsRetryHelper.ts"),
    ],
    RateLimitedError: [
        Said("Alchemy", 429,
             "Your app has exceeded its compute units per second capacity. If you have retries enabled, you can "
             "safely ignore this message. If not, check out https://docs.alchemy.com/reference/throughput",
             wait(None), seen="conduitxyz/node#36"),
        Said("Alchemy, the month is used up", -32600,
             "Monthly capacity limit exceeded. Visit https://dashboard.alchemyapi.io/settings/billing to upgrade"
             " your scaling policy for continued service.", wait(RETRY_AFTER_MAX_S), seen="xmtp/xmtpd#672"),
        Said("Infura", -32005, "project ID request rate exceeded", wait(None),
             data={"rate": {"allowed_rps": 50, "backoff_seconds": 0, "current_rps": 52.3},
             "see": "https://infura.io/docs/ethereum/json-rpc/ratelimits"}, seen="INFURA/infura#201"),
        Said("Infura, the day is used up", -32005, "daily request count exceeded, request rate limited", wait(30),
             data={"rate": {"allowed_rps": 1, "backoff_seconds": 30, "current_rps": 1.266666666666667},
             "see": "https://infura.io/dashboard"}, seen="status-im/nimbus-eth2#1632"),
        Said("Infura of 2019", -32005, "project ID request rate exceeded", wait(30), data={"current_rps": 13.333,
             "allowed_rps": 10.0, "backoff_seconds": 30.0}, seen="ethers-io/ethers.js#640"),
        Said("QuickNode", -32007,
             "100/second request limit reached - reduce calls per second or upgrade your account at quicknode.com",
             wait(None), seen="foundry-rs/foundry#4894"),
        Said("QuickNode, credits", -32012, "credits limited to 6000/sec", wait(None), seen="latticexyz/mud#1522"),
        Said("QuickNode, plan", 429,
             "The requests per second (RPS) of your requests are higher than your plan allows.",
             seen="quicknode.com/docs/ethereum/error-references"),
        Said("Chainstack", -32005, "You've exceeded the RPS limit available on the current plan.", wait(None),
             seen="BobTheBuidler/dank_mids, its types"),
        Said("Ankr", -32090, "Too many requests, reason: call rate limit exhausted, retry in 10s", wait(10),
             data={"trace_id": "442bbec5e0e72f6ead9472c52ee9ddb6"},
             seen="tradingstrategy-ai/web3-ethereum-defi fallback.py"),
        Said("Ankr, for long", -32090, "Too many requests, reason: call rate limit exhausted, retry in 10m0s",
             wait(RETRY_AFTER_MAX_S), seen="a public rate limit handler's test"),
        Said("nodewell", -32005, "Rate limit exceeded. Please retry after 1 second.", wait(1),
             seen="nodewell.io/docs/errors.html"),
        Said("NodeReal", -32005, "You've reached your monthly quota limit", wait(RETRY_AFTER_MAX_S),
             seen="public BNB adapter's notes, 2026"),
        Said("BSC dataseed, where logs are off", -32005, "limit exceeded", wait(None), seen="bnb-chain/bsc#1215"),
        Said("OP proxyd", -32016, "over rate limit", wait(None), seen="alloy-rs/alloy json-rpc error.rs"),
    ],
    NodeBehindError: [
        Said("geth, Besu, Nethermind, Erigon, reth", -32602, "block range extends beyond current head block",
             seen="ethereum/execution-apis#875"),
        Said("reth, with numbers", -32602,
             "block range extends beyond current head block: requested 21000100, head 21000000",
             seen="paradigmxyz/reth#23720"),
        Said("geth, first block past the head", -32602, "invalid block range params",
             seen="ethereum/execution-apis#875, reth#26891"),
        Said("Arbitrum nitro", -32000, "invalid block range params", seen="OffchainLabs/nitro#3666"),
        Said("Monad", -32602, "invalid block range", seen="category-labs/monad-bft#2172"),
        Said("Erigon, syncing", -32000,
             "requested block range [4096, 8192] is beyond latest executed block 4000 (node is still syncing)",
             seen="public bridge's test, 2026"),
        Said("geth, fee history", -32000, "request beyond head block: requested 40, head 32", method="eth_feeHistory",
             seen="ethereum/go-ethereum eth/gasprice/feehistory.go"),
        Said("Besu, syncing", -32008, "Initial sync is still in progress", seen="besu-eth/besu RpcErrorType.java"),
        Said("Avalanche", -32000, "cannot query unfinalized data", method="eth_getBlockByNumber",
             seen="erpc/erpc evm/util.go"),
        Said("Anvil", -32602, "BlockOutOfRangeError: block height is 105 but requested was 106", method="eth_call",
             seen="foundry-rs/foundry#10709"),
    ],
    BlockUnknownError: [
        Said("geth, Infura, Anvil", -32000, "unknown block", seen="besu-eth/besu#8007, foundry-rs/foundry#14371"),
        Said("reth", -32001,
             "block not found: hash 0x74b0d3cf97156502c9bb929fbfbd658ca29257edaf9d73aef0b9414b9bd40b6c",
             seen="public reth getLogs measurements, 2026"),
        Said("BSC", -32000, "header not found", method="eth_getBlockByHash", seen="bnb-chain/bsc#1054"),
        Said("geth without finality", -32000, "finalized block not found", method="eth_getBlockByNumber",
             seen="ethereum/execution-apis#879"),
        Said("Erigon without finality", -39001, "Unknown block", method="eth_getBlockByNumber",
             seen="0xPolygon/cdk-erigon#388"),
        Said("Nethermind", -32001, "Block 0x12a09a8 was not found", method="debug_traceBlockByHash",
             seen="NethermindEth/nethermind#8432"),
        Said("Besu", -32000, "Block not found", method="eth_call", seen="besu-eth/besu RpcErrorType.java"),
        Said("ethrex", -32603, "Internal Error: Could not get header for block 62", seen="lambdaclass/ethrex#7236"),
        Said("Arbitrum nitro", -32000, "couldn't find block with transactions. Reached 1891",
             method="eth_getBlockByNumber", seen="OffchainLabs/nitro#2087"),
        Said("Moonbeam", -32603, "Block hash not found", method="debug_traceBlockByHash",
             seen="moonbeam-foundation/moonbeam#2629"),
        Said("geth, an orphaned hash", -32000, "hash is not currently canonical", method="eth_call",
             seen="erpc/erpc evm/util.go"),
    ],
    PrunedError: [
        Said("geth", -32000,
             "missing trie node 1a3bddc494098bac19ef26e6506812caa12ca5cf036a13ef0eabde38beab5d21 (path )",
             method="eth_getBalance", seen="ethereum/go-ethereum#17133"),
        Said("Bor", -32000,
             "missing trie node c6ebfa185e24077a555f06caaf4b78d9e0ae9dcb7a693ec753e856f49f55c85c (path ) state "
             "0xc6ebfa185e24077a555f06caaf4b78d9e0ae9dcb7a693ec753e856f49f55c85c is not available, not found",
             method="eth_call", seen="0xPolygon/bor#1303"),
        Said("geth, tracing", -32000, "required historical state unavailable (reexec=128)",
             method="debug_traceBlockByHash", seen="blockscout/blockscout#5594"),
        Said("geth, reth, Nethermind", 4444, "pruned history unavailable", seen="NethermindEth/nethermind#12089"),
        Said("Nethermind, logs", -32000, "Receipt not available for From block 14319330.",
             seen="NethermindEth/nethermind#12089"),
        Said("Nethermind, state", -32002,
             "No state available for block 0x74b0d3cf97156502c9bb929fbfbd658ca29257edaf9d73aef0b9414b9bd40b6c",
             method="eth_call", seen="NethermindEth/nethermind#9277"),
        Said("Nethermind, the reason in data", -32603, "Internal error", method="eth_getBalance",
             data="Nethermind.Trie.MissingTrieNodeException: Node A: P:2 "
             "H:0x992eacd1f3b44a51b91065eb946c1fda63da35b3e05497ef6e71f3d9f0c3688b is missing from the DB\n   at "
             "Nethermind.Trie.Pruning.ReadOnlyTrieStore.LoadRlp(TreePath& path)",
             seen="NethermindEth/nethermind#9408"),
        Said("Erigon", -32000, "old data not available due to pruning", method="eth_call",
             seen="erigontech/erigon db/state PrunedError"),
        Said("Erigon, logs", -32000,
             "state transitaion failed: seek with txNum=1962853355 but data before txNum=2662500000 is not "
             "available: blockNum=16999999", seen="erigontech/erigon#13198"),
        Said("reth", -32603, "state at block #49871645 is pruned", seen="1rpc.io/base in a public agent's notes"),
        Said("reth, proofs", -32602, "distance to target block exceeds maximum proof window", method="eth_getProof",
             seen="paradigmxyz/reth#14952"),
        Said("Besu", -32000, "World state unavailable", method="eth_getBalance",
             seen="besu-eth/besu RpcErrorType.java"),
        Said("PublicNode", -32701, "History has been pruned for this block", seen="public BSC log scanner's test"),
        Said("PublicNode, state", -32602, "Archive requests require a personal token",
             seen="public log scanner's notes, 2026"),
        Said("Infura", -32002, "project ID does not have access to archive state", method="eth_getBalance",
             seen="status-im/status-go#2107"),
        Said("Ankr", -32061, "No archive nodes available", seen="ankr.com/docs/rpc-service/errors/per-chain-quirks"),
        Said("dRPC", 1,
             "no available upstreams to process a request. Cause - ... Upstream lower height 42810022 of type "
             "RECEIPTS is greater than 35662252", seen="sentioxyz/sentio-core clientpool"),
        Said("Somnia", -1, "unable to load historical state", method="eth_getBalance",
             seen="foundry-rs/foundry#16773"),
    ],
    TransientError: [
        Said("dRPC", 30, "Request timeout on the free tier, please upgrade your tier to the paid one",
             method="eth_getBlockByNumber", seen="enviodev/hyperindex#715"),
        Said("dRPC", 19, "Temporary internal error", seen="sentioxyz/sentio-core clientpool"),
        Said("geth", -32002, "request timed out", seen="ethereum/go-ethereum rpc/errors.go"),
        Said("geth, a slow call", -32000, "execution aborted (timeout = 5s)", method="eth_call",
             seen="ethereum/go-ethereum internal/ethapi"),
        Said("Erigon", -32000, "method handler crashed", method="eth_call", seen="erigontech/erigon#3152"),
        Said("Nethermind", -32603, "Internal error", seen="NethermindEth/nethermind#250"),
        Said("Base", -32011, "no backend is currently healthy to serve traffic",
             seen="ponder-sh/ponder getLogsRetryHelper.ts"),
        Said("Ankr", -32055, "No nodes available", seen="ankr.com/docs/rpc-service/errors/overview"),
        Said("Cloudflare", -32046, "Cannot fulfill request", seen="public failover router's test"),
        Said("geth, indexing", -32000, "transaction indexing is in progress", method="eth_getTransactionReceipt",
             seen="drpcorg/dshackle EthereumLowerBoundReceiptsDetector.kt"),
    ],
    MethodMissingError: [
        Said("geth", -32601, "the method debug_traceBlockByNumber does not exist/is not available",
             method="debug_traceBlockByNumber", seen="celo-org/celo-blockchain#1721"),
        Said("Erigon", -32601, "the method trace_block does not exist/is not available", method="trace_block",
             seen="erigontech/erigon#2242"),
        Said("Anvil, reth", -32601, "Method not found", method="trace_block", seen="foundry-rs/foundry#9397"),
        Said("Besu", -32604, "Method not enabled", method="trace_block", seen="blockscout/blockscout#3998"),
        Said("Alchemy, free plan", -32600,
             "trace_filter is not available on the Free tier - upgrade to Pay As You Go, or Enterprise for "
             "access.", method="trace_filter", seen="Agoric/agoric-sdk#12396"),
        Said("Ankr", -32075, "Method disabled", method="debug_traceBlockByHash",
             seen="ankr.com/docs/rpc-service/errors/per-chain-quirks"),
        Said("a public node", -32000, "rpc method is not whitelisted", method="debug_traceBlockByHash",
             seen="erpc/erpc evm/error_normalizer.go"),
        Said("Monad", -32601, "Method not supported", seen="docs.monad.xyz/openrpc/rpc-error-codes"),
        Said("PulseChain", -32601, "Method not allowed", seen="rpc.pulsechain.box/reference/blocked-methods"),
        Said("QuickNode, a bare code", -32612, "", seen="erpc/erpc thirdparty/quicknode.go"),
    ],
    BatchTooLargeError: [
        Said("Erigon", -32000, "batch limit 100 exceeded: 142 requests given", {"max_calls": 100},
             seen="erigontech/erigon#7072"),
        Said("dRPC, free plan", 31, "Batch of more than 3 requests are not allowed on free plan", {"max_calls": 3},
             seen="public dApp's provider settings"),
        Said("geth", -32600, "batch too large", {"max_calls": None}, seen="ethereum/go-ethereum#26681"),
        Said("geth, too many bytes", -32003, "response too large", method="eth_getBlockByNumber",
             seen="ethereum/go-ethereum#26681"),
        Said("Besu", -32005, "Number of requests exceeds max batch size", seen="besu-eth/besu RpcErrorType.java"),
        Said("Gnosis", -32600, 'Too many ["eth_getLogs"] methods in the batch',
             seen="AlphaWallet/alpha-wallet-ios#5021"),
    ],
    FatalError: [
        Said("geth", 3, "execution reverted", method="eth_call", data="0x08c379a0",
             seen="ethereum/go-ethereum internal/ethapi/errors.go"),
        Said("a contract that talks like a provider", -32000, "execution reverted: rate limit exceeded, retry in 10s",
             method="eth_call", seen="made up, for that may come"),
        Said("Nethermind", -32015, "VM execution error.", method="eth_call", data="Reverted 0x",
             seen="erpc/erpc evm/error_normalizer.go"),
        Said("Hardhat", -32603,
             "Error: VM Exception while processing transaction: reverted with reason string 'timeout'",
             method="eth_call", seen="erpc/erpc evm/error_normalizer.go; the reason is made up"),
        Said("Besu, whose code is that of a rate limit", -32005, "Transaction gas limit exceeds block gas limit",
             method="eth_sendRawTransaction", seen="besu-eth/besu RpcErrorType.java"),
        Said("Besu", -32001, "Nonce too low", method="eth_sendRawTransaction",
             seen="besu-eth/besu RpcErrorType.java"),
        Said("geth", -32602, "too many arguments, want at most 0", seen="ethereum/go-ethereum#25773"),
        Said("reth", -32602, "Invalid params", seen="public reth getLogs measurements, 2026"),
        Said("Ankr", -32000, "Unauthorized: You must authenticate your request with an API key. Create an account on "
             "https://www.ankr.com/rpc/ and generate your personal API key for free.",
             seen="BitteProtocol/near-ca#173"),
        Said("PublicNode", -32701,
             "Please specify an address in your request or, to remove restrictions, order a dedicated full node "
             "here: https://www.allnodes.com/eth/host", seen="jaxernst/lasso-rpc error_classification_test.exs"),
        Said("nobody we know", -32000, "the flux compensator is out of plutonium", seen="made up"),
    ],
}
# fmt: on
EVERYTHING = [(said, expected) for expected, group in SAID.items() for said in group]


def name(said: Any) -> str:
    return f"{said.provider}: {said.message[:40]}" if isinstance(said, Said) else said.__name__


@pytest.mark.parametrize(("said", "expected"), EVERYTHING, ids=name)
def test_what_a_node_says_becomes_the_type_that_tells_the_caller_what_to_do(
    said: Said, expected: type[NodeError]
) -> None:
    error = from_rpc(said.code, said.message, said.method, said.data)
    assert type(error) is expected, str(error)
    assert {key: getattr(error, key) for key in said.extras} == said.extras
    assert str(error).startswith(f"{said.method}: ")


@pytest.mark.parametrize(("said", "expected"), EVERYTHING, ids=name)
def test_the_same_answer_inside_an_http_400_means_the_same(said: Said, expected: type[NodeError]) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "error": {"code": said.code, "message": said.message, "data": said.data}}
    error = from_http(400, msgspec.json.encode(body).decode(), said.method)
    assert type(error) is expected, str(error)
    assert {key: getattr(error, key) for key in said.extras} == said.extras


@pytest.mark.parametrize(("said", "expected"), EVERYTHING, ids=name)
def test_upper_and_lower_case_do_not_matter(said: Said, expected: type[NodeError]) -> None:
    assert type(from_rpc(said.code, said.message.upper(), said.method, said.data)) is expected
    assert type(from_rpc(said.code, said.message.lower(), said.method, said.data)) is expected


@pytest.mark.parametrize(
    ("expected", "codes"),
    [
        (TransientError, [-32603, -32002, -32055]),
        (RateLimitedError, [-32005, -32007, -32090, 429]),
        (RangeTooWideError, [-32062, -32614]),
        (PrunedError, [-32061, 4444]),
        (BlockUnknownError, [-32001, -39001]),
        (MethodMissingError, [-32601, -32004, -32075, -32604, -32612, -32613]),
        (FatalError, [3, -32600, -32602, -32700, -32000, 0]),
    ],
)
def test_where_the_words_say_nothing_the_code_decides(expected: type[NodeError], codes: list[int]) -> None:
    assert {type(from_rpc(code, "?", "eth_getLogs")) for code in codes} == {expected}


def test_only_what_may_work_in_a_moment_is_retried() -> None:
    retryable = {error for error in vars(errors).values() if isinstance(error, type) and getattr(error, "retryable", 0)}
    assert retryable == {TransientError, RateLimitedError, InvalidAnswerError}


@pytest.mark.parametrize(
    ("status", "body", "method", "expected"),
    [
        (429, "", "eth_call", RateLimitedError),
        (429, "<html><body>Error 1015: you are being rate limited</body></html>", "eth_call", RateLimitedError),
        (429, '{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"?"}}', "eth_call", RateLimitedError),
        (429, '{"code":-32007,"message":"300/second request limit reached"}', "eth_call", RateLimitedError),
        (429, '[{"jsonrpc":"2.0","id":"1","error":{"code":-32012,"message":"?"}}]', "eth_call", RateLimitedError),
        (402, "Payment Required", "eth_call", RateLimitedError),  # dRPC, enviodev/hyperindex#715
        (403, '{"error":"Monthly capacity limit exceeded."}', "eth_call", RateLimitedError),
        (500, "", "eth_call", TransientError),
        (502, "<html>method not found</html>", "eth_call", TransientError),
        (503, "error: no backend is currently healthy", "eth_call", TransientError),
        (521, "", "eth_call", TransientError),  # Cloudflare: the origin is down
        (408, "", "eth_call", TransientError),
        (500, '{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"oops"}}', "eth_call", TransientError),
        (500, '{"error":{"code":3,"message":"execution reverted: no"}}', "eth_call", FatalError),
        (500, '{"error":{"code":31,"message":"Batch of more than 3 requests"}}', "eth_call", BatchTooLargeError),
        (413, "Request Entity Too Large", "eth_getLogs", RangeTooWideError),
        (413, "", "eth_getBlockByNumber", BatchTooLargeError),
        (400, "old data not available due to pruning", "eth_getBlockByNumber", PrunedError),
        (403, "Forbidden - custom trace not found in allowed custom traces", "trace_block", MethodMissingError),
        (403, "<html>Attention Required! rate limit</html>", "eth_call", FatalError),
        (401, "", "eth_call", FatalError),
        (404, "Not Found", "eth_call", FatalError),
        (404, "null", "eth_call", FatalError),
    ],
)
def test_an_http_answer_is_read_by_its_json_then_its_status_then_its_text(
    status: int, body: str, method: str, expected: type[NodeError]
) -> None:
    error = from_http(status, body, method)
    assert type(error) is expected, str(error)
    assert f"HTTP {status}" in str(error)


def test_quicknode_tells_its_limit_inside_an_http_413() -> None:
    body = '{"jsonrpc":"2.0","id":56,"error":{"code":-32614,"message":"eth_getLogs is limited to a 10,000 range"}}'
    error = from_http(413, body, "eth_getLogs")  # OffchainLabs/arbitrum-sdk#609
    assert isinstance(error, RangeTooWideError)
    assert error.max_blocks == 10_000
    assert str(error) == "eth_getLogs: HTTP 413: eth_getLogs is limited to a 10,000 range (-32614)"


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0.5", 0.5),
        ("86400", RETRY_AFTER_MAX_S),
        ("9" * 500, RETRY_AFTER_MAX_S),
        ("0", None),
        ("-5", None),
        ("soon", None),
        ("٣", None),
        ("", None),
        (None, None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_MAX_S),
    ],
)
def test_retry_after_is_honoured_within_bounds(retry_after: str | None, expected: float | None) -> None:
    error = from_http(429, "", "eth_call", retry_after)
    assert isinstance(error, RateLimitedError)
    assert error.retry_after_s == expected


def test_retry_after_may_be_a_date() -> None:
    moment = datetime.now(UTC) + timedelta(seconds=120)
    error = from_http(429, "", "eth_call", format_datetime(moment, usegmt=True))
    assert isinstance(error, RateLimitedError)
    assert error.retry_after_s == pytest.approx(120, abs=5)


def test_the_header_counts_more_than_the_words() -> None:
    error = from_http(
        429, '{"error":{"code":-32090,"message":"call rate limit exhausted, retry in 10s"}}', "eth_call", "3"
    )
    assert isinstance(error, RateLimitedError)
    assert error.retry_after_s == 3


def test_a_503_that_says_when_to_return_is_a_rate_limit() -> None:
    error = from_http(503, "", "eth_call", "20")
    assert isinstance(error, RateLimitedError)
    assert error.retry_after_s == 20


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("retry in 500ms", 0.5), ("try again in 5 seconds", 5), ("retry after 2 minutes", 120), ("retry in 10m0s", 600)],
)
def test_waits_are_read_in_any_unit(text: str, seconds: float) -> None:
    error = from_rpc(429, f"too many requests, {text}", "eth_call")
    assert isinstance(error, RateLimitedError)
    assert error.retry_after_s == seconds


def test_a_suggestion_that_ends_before_it_begins_is_none() -> None:
    error = from_rpc(-32602, "this block range should work: [0x9, 0x1]", "eth_getLogs")
    assert isinstance(error, RangeTooWideError)
    assert error.suggested is None


def test_a_batch_of_answers_is_read_by_its_first() -> None:
    assert type(from_http(400, '[{"error":{"code":-32601,"message":"?"}}]', "trace_block")) is MethodMissingError


@pytest.mark.parametrize(
    "secret",
    [
        "https://eth-mainnet.g.alchemy.com/v2/_gHhOgCqAFaa8f35R1PeHmpHx1E-zVcN",
        "wss://user:hunter2@node.example/ws",
        "mainnet.infura.io/v3/9aa3d95b3bc440fa88ea12eaa4456161",
        "broken-icy-mountain.quiknode.pro/14fb466c039ca54a895f597ee2744e848949099d/",
        "9aa3d95b3bc440fa88ea12eaa4456161",
        "14fb466c-039c-4a54-895f-597ee2744e84",
        "api_key=hunter2",
        "dkey=hunter2",
        '"token": "hunter2"',
    ],
)
def test_no_url_and_no_key_is_in_a_message(secret: str) -> None:
    for error in (
        from_rpc(-32000, f"invalid project {secret} today", "eth_call", {"see": f"with {secret}"}),
        from_http(403, f"invalid project {secret} today", "eth_call"),
        from_http(403, msgspec.json.encode({"error": {"message": f"no {secret}"}}).decode(), "eth_call"),
    ):
        assert "[redacted]" in str(error)
        assert not any(part in str(error) for part in ("9aa3", "14fb", "hunter2", "gHhO", "://", "/v2", "/v3"))


def test_hashes_and_addresses_stay_readable() -> None:
    assert HASH in str(from_rpc(-32001, f"block not found: hash {HASH}", "eth_getLogs"))


def test_a_message_is_one_short_line() -> None:
    error = from_rpc(-32000, "no\nidea " + "very " * 100_000, "eth_call")
    assert "\n" not in str(error)
    assert len(str(error)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["rate", "backoff_seconds", "from", "to", "message", "x"]) | st.text(), inner)
    ),
    max_leaves=12,
)
WORDS = st.text() | st.lists(
    st.sampled_from([said.message for said, _ in EVERYTHING] + ["[0x", "retry in ", "9" * 30])
).map("".join)


@given(code=st.integers(), message=WORDS, method=st.text() | st.just("eth_getLogs"), data=JSON)
@example(code=-32005, message="retry in 9" + "9" * 500 + "s", method="eth_call", data={"backoff_seconds": float("nan")})
@example(code=-32005, message="", method="eth_call", data={"backoff_seconds": 10**5_000})
@example(code=-32005, message="block range [0x" + "f" * 500 + ", 0x1]", method="eth_getLogs", data={"from": "0x"})
@example(code=0, message="limited to a " + "9" * 5_000 + " block range", method="eth_getLogs", data=None)
@example(code=0, message="limited to a 9,,, block range", method="eth_getLogs", data=None)
def test_any_json_rpc_error_has_one_type_and_sane_numbers(code: int, message: str, method: str, data: Any) -> None:
    error = from_rpc(code, message, method, data)
    again = from_rpc(code, message, method, data)
    assert (type(error), str(error), vars(error)) == (type(again), str(again), vars(again))
    check(error)


@given(
    status=st.integers(100, 599),
    body=WORDS
    | JSON.map(lambda value: msgspec.json.encode(value).decode())
    | JSON.map(lambda value: error_body(value)),
    retry_after=st.none() | st.text() | st.datetimes().map(format_datetime) | st.integers().map(str),
)
@example(status=429, body="[" * 100_000, retry_after="Mon, 99 Jan 0000 99:99:99 GMT")
@example(status=400, body="[]", retry_after="Sat, 01 Jan 0001 00:00:00 +2359")
@example(status=400, body="\ud800", retry_after=None)
def test_any_http_answer_has_a_type_and_sane_numbers(status: int, body: str, retry_after: str | None) -> None:
    check(from_http(status, body, "eth_getLogs", retry_after))


def error_body(value: Any) -> str:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "error": value}).decode()


def check(error: NodeError) -> None:
    if isinstance(error, RateLimitedError):
        assert error.retry_after_s is None or 0 < error.retry_after_s <= RETRY_AFTER_MAX_S
    if isinstance(error, RangeTooWideError):
        assert error.max_blocks is None or error.max_blocks > 0
        assert error.suggested is None or 0 <= error.suggested[0] <= error.suggested[1]
    if isinstance(error, BatchTooLargeError):
        assert error.max_calls is None or error.max_calls > 0

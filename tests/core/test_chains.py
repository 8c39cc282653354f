"""Goal: a right chains.yaml becomes frozen dataclasses; a wrong one names file, chain and field of each mistake."""

from dataclasses import FrozenInstanceError, asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.core.chains import (
    Asset,
    Chain,
    ChainlinkRates,
    ChainsFile,
    Finality,
    FixedRates,
    HttpRates,
    Native,
    Sweep,
    Token,
    load_chains,
)
from app.core.errors import ConfigError
from app.core.evm import NATIVE_ASSET, to_bytes20

SHIPPED = Path(__file__).parents[2] / "chains.yaml"
USDC = "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"
USDT = "0xdAC17F958D2ee523a2206206994597C13D831ec7"
TREASURY = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"


def load(text: str, tmp_path: Path, **env: str) -> ChainsFile:
    path = tmp_path / "chains.yaml"
    path.write_text(text)
    return load_chains(path, env)


def load_chain(tmp_path: Path, env: dict[str, str] | None = None, **fields: Any) -> Chain:
    """A good chain with some fields replaced; `None` takes one away."""
    chain = {"name": "ethereum", "chain_id": 1, "rpc_url": "http://node"} | fields
    chain = {key: value for key, value in chain.items() if value is not None}
    return load(yaml.safe_dump({"chains": [chain]}), tmp_path, **(env or {})).chains[0]


def problems(text: str, tmp_path: Path, **env: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path, **env)
    start = f"{tmp_path / 'chains.yaml'}: "
    lines = str(caught.value).splitlines()
    assert all(line.startswith(start) for line in lines)
    return [line.removeprefix(start) for line in lines]


def chain_problems(tmp_path: Path, env: dict[str, str] | None = None, **fields: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_chain(tmp_path, env, **fields)
    return [line.removeprefix(f"{tmp_path / 'chains.yaml'}: ") for line in str(caught.value).splitlines()]


FULL = f"""
chains:
  - name: ethereum
    enabled: true
    chain_id: 1
    rpc_urls: ["${{ETHEREUM_RPC_URL}}", "https://node/${{KEY}}/v2"]
    ws_url: "${{ETHEREUM_WS_URL}}"
    confirmations_required: 15
    finality: {{tag: finalized}}
    block_batch_size: 100
    poll_interval: 2.5
    max_head_age: 60
    start_block: 19000000
    native: {{symbol: ETH, decimals: 18, detect: balances}}
    tokens:
      - {{symbol: USDC, address: "{USDC}", decimals: 6}}
    sweep:
      mode: auto
      treasury: "{TREASURY}"
      interval: 20.0
      batch_size: 10
      max_fee_gwei: 0.05
      min_amount: {{eth: "0.002", "{USDC}": 5}}
      max_wait: 3600
rates:
  max_age: 60
  sources:
    - {{kind: fixed, pairs: {{USDC/USD: "1", usdt/usd: "0.999"}}}}
    - {{kind: chainlink, chain: ethereum, feeds: {{ETH/USD: "0x5f4eC3Df9cbd43714FE2740f5E3616155c5b8419"}}}}
    - {{kind: http, url: "https://api.example/{{base}}-{{quote}}?k=${{KEY}}", path: "data.amount"}}
"""


def test_every_key_of_the_design_is_read(tmp_path: Path) -> None:
    found = load(FULL, tmp_path, ETHEREUM_RPC_URL="http://a:8545", KEY="k1", ETHEREUM_WS_URL="wss://a")
    assert found.chains == (
        Chain(
            name="ethereum",
            enabled=True,
            chain_id=1,
            rpc_urls=("http://a:8545", "https://node/k1/v2"),
            ws_url="wss://a",
            confirmations_required=15,
            finality=Finality(tag="finalized", depth=None),
            block_batch_size=100,
            poll_interval_s=2.5,
            start_block=19_000_000,
            native=Native("ETH", 18, "balances"),
            tokens=(Token("USDC", to_bytes20(USDC), 6),),
            sweep=Sweep(
                mode="auto",
                treasury=to_bytes20(TREASURY),
                interval_s=20.0,
                batch_size=10,
                max_fee_gwei=Decimal("0.05"),
                min_amount={"ETH": "0.002", "USDC": "5"},
                max_wait_s=3600.0,
            ),
            max_head_age_s=60.0,
        ),
    )
    assert found.rates is not None
    assert found.rates.max_age_s == 60.0
    assert found.rates.sources == (
        FixedRates({"USDC/USD": Decimal(1), "USDT/USD": Decimal("0.999")}),
        ChainlinkRates("ethereum", {"ETH/USD": to_bytes20("0x5f4eC3Df9cbd43714FE2740f5E3616155c5b8419")}),
        HttpRates("https://api.example/{base}-{quote}?k=k1", "data.amount"),
    )
    assert found.path == tmp_path / "chains.yaml"


@pytest.mark.parametrize(("chain_id", "max_head_age_s"), [(1, 180.0), (11155111, 180.0), (31337, None), (4242, None)])
def test_only_a_chain_that_is_known_never_to_rest_has_a_limit_by_default(
    tmp_path: Path, chain_id: int, max_head_age_s: float | None
) -> None:
    assert load_chain(tmp_path, chain_id=chain_id).max_head_age_s == max_head_age_s


def test_a_source_of_rates_may_have_an_age_of_its_own(tmp_path: Path) -> None:
    found = load(FULL.replace("feeds:", "max_age: 3900, feeds:"), tmp_path, ETHEREUM_RPC_URL="http://a", KEY="k1")
    assert found.rates is not None
    assert [getattr(source, "max_age_s", None) for source in found.rates.sources] == [None, 3900.0, None]
    text = FULL.replace("kind: http,", "kind: http, max_age: 0,").replace("{kind: fixed,", "{kind: fixed, max_age: 5,")
    assert problems(text, tmp_path, ETHEREUM_RPC_URL="http://a", KEY="k1") == [
        "rates.sources[0].max_age: unknown key",
        "rates.sources[2].max_age: must be a number from 1 to 86400",
    ]


def test_what_is_left_out_has_a_sensible_default(tmp_path: Path) -> None:
    chain = load_chain(tmp_path)
    assert chain == Chain(
        name="ethereum",
        enabled=True,
        chain_id=1,
        rpc_urls=("http://node",),
        ws_url=None,
        confirmations_required=12,
        finality=Finality(tag=None, depth=64),
        block_batch_size=200,
        poll_interval_s=4.0,
        start_block=None,
        native=Native("ETH", 18, "blocks"),
        tokens=(),
        sweep=Sweep(mode="off", treasury=None),
        max_head_age_s=180.0,
    )
    assert load_chain(tmp_path, start_block="latest").start_block is None


def test_a_chain_is_frozen_hashable_and_keeps_its_urls_out_of_its_repr(tmp_path: Path) -> None:
    chain = load_chain(tmp_path, rpc_url="https://node/KEY", ws_url="wss://node/KEY", sweep={"mode": "off"})
    with pytest.raises(FrozenInstanceError):
        chain.enabled = False  # type: ignore[misc]
    assert len({chain, chain}) == 1
    assert asdict(chain)["name"] == "ethereum"
    assert "KEY" not in repr(chain)


def test_enabled_chains_are_those_that_are_watched(tmp_path: Path) -> None:
    text = (
        "chains: [{name: a, chain_id: 1, rpc_url: http://n}, {name: b, chain_id: 2, enabled: false, rpc_url: http://n}]"
    )
    found = load(text, tmp_path)
    assert [chain.name for chain in found.chains] == ["a", "b"]
    assert [chain.name for chain in found.enabled] == ["a"]
    assert found.chain("b") is found.chains[1]
    assert found.chain("c") is None
    assert found.rates is None


def test_an_asset_is_found_by_symbol_or_by_contract(tmp_path: Path) -> None:
    chain = load_chain(tmp_path, tokens=[{"symbol": "USDC", "address": USDC, "decimals": 6}])
    usdc = Asset("USDC", to_bytes20(USDC), 6)
    assert chain.asset("USDC") == chain.asset("usdc") == chain.asset(USDC) == chain.asset(USDC.lower()) == usdc
    assert not usdc.is_native
    native = Asset("ETH", NATIVE_ASSET, 18)
    assert chain.asset("ETH") == chain.asset("eth") == chain.asset_by_address(NATIVE_ASSET) == native
    assert native.is_native
    assert chain.assets == (native, usdc)
    assert chain.asset_by_address(to_bytes20(USDC)) == usdc


@pytest.mark.parametrize("text", ["", "DAI", USDT, "0x", "0xa" + USDC[3:].lower().replace("b", "B", 1), "USDC "])
def test_an_unknown_asset_or_a_mistyped_address_is_none(tmp_path: Path, text: str) -> None:
    assert load_chain(tmp_path, tokens=[{"symbol": "USDC", "address": USDC, "decimals": 6}]).asset(text) is None


@pytest.mark.parametrize("mode", ["off", "'off'", "false"])
def test_an_unquoted_off_is_off(tmp_path: Path, mode: str) -> None:
    text = f"chains: [{{name: a, chain_id: 1, rpc_url: http://n, sweep: {{mode: {mode}}}}}]"
    assert load(text, tmp_path).chains[0].sweep.mode == "off"


def test_an_unset_variable_of_an_enabled_chain_is_named_without_the_others_values(tmp_path: Path) -> None:
    fields = {"rpc_url": None, "rpc_urls": ["https://${HOST}/${KEY}", "${EMPTY}"]}
    found = chain_problems(tmp_path, {"KEY": "hunter2", "EMPTY": ""}, **fields)
    assert found == [
        "chain 'ethereum': rpc_urls[0]: the environment variable HOST is not set",
        "chain 'ethereum': rpc_urls[1]: the environment variable EMPTY is not set",
    ]


def test_a_disabled_chains_variables_are_not_needed(tmp_path: Path) -> None:
    chain = load_chain(
        tmp_path,
        enabled=False,
        rpc_url=None,
        rpc_urls=["${RPC}", "http://fallback"],
        ws_url="${WS}",
        tokens=[
            {"symbol": "USDC", "address": "${USDC}", "decimals": 6},
            {"symbol": "USDT", "address": USDT, "decimals": 6},
        ],
        sweep={"mode": "auto", "treasury": "${TREASURY}", "min_amount": {"ETH": "${MIN}"}},
    )
    assert chain.rpc_urls == ("http://fallback",)
    assert [token.symbol for token in chain.tokens] == ["USDT"]
    assert (chain.ws_url, chain.sweep.treasury) == (None, None)


def test_a_disabled_chain_is_checked_all_the_same(tmp_path: Path) -> None:
    assert chain_problems(tmp_path, enabled=False, confirmations_required=0) == [
        "chain 'ethereum': confirmations_required: must be a whole number from 1 to 10000"
    ]


def test_whether_a_chain_is_enabled_may_be_a_variable(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"enabled": "${ON}", "rpc_url": "${RPC}"}
    assert not load_chain(tmp_path, {"ON": "false"}, **fields).enabled
    assert load_chain(tmp_path, {"ON": "true", "RPC": "http://n"}, **fields).enabled


def test_an_unset_ws_url_means_none(tmp_path: Path) -> None:
    assert load_chain(tmp_path, ws_url="${WS}").ws_url is None
    assert load_chain(tmp_path, {"WS": ""}, ws_url="${WS}").ws_url is None
    assert load_chain(tmp_path, {"WS": "wss://n"}, ws_url="${WS}").ws_url == "wss://n"


def test_numbers_may_come_from_variables(tmp_path: Path) -> None:
    chain = load_chain(tmp_path, {"N": "7"}, confirmations_required="${N}", poll_interval="${N}.5")
    assert (chain.confirmations_required, chain.poll_interval_s) == (7, 7.5)


TOKEN = {"symbol": "USDC", "address": USDC, "decimals": 6}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pol_interval": 1}, "pol_interval: unknown key; did you mean poll_interval?"),
        ({"name": None}, "name: is required"),
        ({"name": "my chain"}, "name: must be up to 32 letters, digits, hyphens and underscores"),
        ({"name": 5}, "name: must be up to 32 letters"),
        ({"chain_id": None}, "chain_id: is required"),
        ({"chain_id": True}, "chain_id: must be a whole number"),
        ({"chain_id": 0}, "chain_id: must be a whole number from 1"),
        ({"chain_id": 1.0}, "chain_id: must be a whole number"),
        ({"enabled": "maybe"}, "enabled: must be true or false"),
        ({"enabled": 1}, "enabled: must be true or false"),
        ({"rpc_url": None}, "rpc_urls: is required"),
        ({"rpc_url": None, "rpc_urls": []}, "rpc_urls: at least one URL is needed"),
        ({"rpc_urls": ["http://n"]}, "rpc_urls: give rpc_url or rpc_urls, not both"),
        ({"rpc_url": None, "rpc_urls": "http://n"}, "rpc_urls: must be a list, not text"),
        ({"rpc_url": "ws://n"}, "rpc_url: must be a URL that begins with http:// or https://"),
        ({"rpc_url": "node:8545"}, "rpc_url: must be a URL"),
        ({"rpc_url": "http://"}, "rpc_url: must be a URL"),
        ({"rpc_url": "http://n:port"}, "rpc_url: must be a URL"),
        ({"rpc_url": 8545}, "rpc_url: must be a URL"),
        ({"rpc_url": "${RPC URL}"}, "rpc_url: a variable is written ${NAME}"),
        ({"ws_url": "http://n"}, "ws_url: must be a URL that begins with ws:// or wss://"),
        ({"confirmations_required": 0}, "confirmations_required: must be a whole number from 1"),
        ({"confirmations_required": True}, "confirmations_required: must be a whole number"),
        ({"finality": "finalized"}, "finality: must be a mapping, not text"),
        ({"finality": {}}, "finality: must be {tag: finalized} or {depth: 64}"),
        ({"finality": {"tag": "safe", "depth": 3}}, "finality: must be {tag: finalized} or {depth: 64}"),
        ({"finality": {"tag": "latest"}}, "finality.tag: must be one of finalized, safe"),
        ({"finality": {"depth": 0}}, "finality.depth: must be a whole number from 1"),
        ({"finality": {"depth": 3, "dept": 4}}, "finality.dept: unknown key"),
        ({"block_batch_size": 10_001}, "block_batch_size: must be a whole number from 1 to 10000"),
        ({"poll_interval": 0.01}, "poll_interval: must be a number from 0.05 to 600"),
        ({"poll_interval": float("nan")}, "poll_interval: must be a number"),
        ({"poll_interval": True}, "poll_interval: must be a number"),
        ({"start_block": "first"}, "start_block: must be latest or a block number"),
        ({"start_block": -1}, "start_block: must be latest or a block number"),
        ({"start_block": "${N}"}, "start_block: the environment variable N is not set"),
        ({"native": []}, "native: must be a mapping, not a list"),
        ({"native": {"symbol": True}}, "native.symbol: must be a symbol without spaces, in quotes"),
        ({"native": {"detect": "logs"}}, "native.detect: must be one of blocks, trace, balances"),
        ({"native": {"decimals": 78}}, "native.decimals: must be a whole number from 0 to 77"),
        ({"tokens": {}}, "tokens: must be a list, not a mapping"),
        ({"tokens": ["USDC"]}, "tokens[0]: must be a mapping, not text"),
        ({"tokens": [None]}, "tokens[0]: must be a mapping, not nothing"),
        ({"tokens": [{**TOKEN, "name": "x"}]}, "tokens[0].name: unknown key"),
        ({"tokens": [{"symbol": "USDC", "address": USDC}]}, "tokens[0].decimals: is required"),
        ({"tokens": [{"symbol": "USDC", "decimals": 6}]}, "tokens[0].address: is required"),
        (
            {"tokens": [{**TOKEN, "address": USDC.replace("A", "a", 1)}]},
            "tokens[0].address: the address has a bad checksum",
        ),
        ({"tokens": [{**TOKEN, "address": "0x12"}]}, "tokens[0].address: not an address"),
        ({"tokens": [{**TOKEN, "address": int(USDC, 16)}]}, "tokens[0].address: must be an address in quotes"),
        ({"tokens": [{**TOKEN, "address": "0x" + "0" * 40}]}, "tokens[0].address: must not be the zero address"),
        ({"tokens": [{**TOKEN, "decimals": "six"}]}, "tokens[0].decimals: must be a whole number"),
        ({"tokens": [{**TOKEN, "symbol": "eth"}]}, "tokens[0].symbol: eth is the symbol of another asset"),
        ({"tokens": [{**TOKEN, "symbol": USDC}]}, "tokens[0].symbol: must be a symbol"),
        ({"tokens": [TOKEN, {**TOKEN, "symbol": "X"}]}, "tokens[1].address: is the address of another token"),
        ({"tokens": [TOKEN, {**TOKEN, "address": USDT}]}, "tokens[1].symbol: USDC is the symbol of another asset"),
        ({"sweep": {"mode": "auto"}}, "sweep.treasury: is required"),
        ({"sweep": {"mode": True, "treasury": TREASURY}}, "sweep.mode: must be one of auto, eip7702, topup, off"),
        ({"sweep": {"treasury": "0x12"}}, "sweep.treasury: not an address"),
        ({"sweep": {"treasury": "${T}"}}, "sweep.treasury: the environment variable T is not set"),
        ({"sweep": {"treasury": USDC}, "tokens": [TOKEN]}, "sweep.treasury: is a token's contract"),
        ({"sweep": {"mode": "off", "batch_size": 0}}, "sweep.batch_size: must be a whole number from 1"),
        ({"sweep": {"mode": "off", "max_fee_gwei": 0}}, "sweep.max_fee_gwei: must be a number above zero"),
        ({"sweep": {"mode": "off", "max_fee_gwei": True}}, "sweep.max_fee_gwei: must be a number above zero"),
        ({"sweep": {"mode": "off", "min_amount": {"ETH": 0.002}}}, "sweep.min_amount.ETH: must be a decimal amount"),
        ({"sweep": {"mode": "off", "min_amount": {"ETH": "-1"}}}, "sweep.min_amount.ETH: must be a decimal amount"),
        ({"sweep": {"mode": "off", "min_amount": {"DAI": "1"}}}, "sweep.min_amount.DAI: no such asset on this chain"),
        ({"sweep": {"mode": "off", "min_amount": {"ETH": "0." + "1" * 19}}}, "sweep.min_amount.ETH: the amount has 19"),
        ({"sweep": {"mode": "off", "max_wait": 0}}, "sweep.max_wait: must be a number from 1"),
    ],
)
def test_a_mistake_is_told_once_by_chain_and_field(tmp_path: Path, fields: dict[str, Any], expected: str) -> None:
    (found,) = chain_problems(tmp_path, **fields)
    label = "chain 'ethereum'" if isinstance(fields.get("name", "ethereum"), str) else "chains[0]"
    name = fields.get("name")
    label = f"chain '{name}'" if isinstance(name, str) else label
    assert found.startswith(f"{label}: {expected}")


def test_a_url_that_is_wrong_is_not_repeated(tmp_path: Path) -> None:
    assert "KEY" not in "".join(chain_problems(tmp_path, rpc_url="ftp://node/KEY"))


def test_all_mistakes_of_all_chains_are_told_at_once(tmp_path: Path) -> None:
    text = """
chains:
  - {name: one, chain_id: 1, rpc_url: "${NODE}", tokens: [{symbol: A, address: "0x1", decimals: 6}]}
  - {name: One, chain_id: 1, rpc_url: "http://n", poll_interval: 0}
  - nonsense
  - {name: two, chain_id: x, rpc_url: "http://n"}
  - {name: three, chain_id: y, rpc_url: "http://n"}
extra: 1
"""
    found = [line.rpartition(": ")[0] for line in problems(text, tmp_path)]
    assert sorted(found) == sorted(
        [
            "chain 'one': rpc_url",
            "chain 'one': tokens[0].address: not an address",
            "chain 'One': poll_interval",
            "chain 'One': name",
            "chain 'One': chain_id",
            "chains[2]",
            "chain 'two': chain_id",
            "chain 'three': chain_id",
            "extra",
        ]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; it must hold chains:"),
        ("# only a comment\n", "the file is empty; it must hold chains:"),
        ("- ethereum\n", "must be a mapping that holds chains:"),
        ("{}", "chains: at least one chain is needed"),
        ("chains: []", "chains: at least one chain is needed"),
        ("chains:\n", "chains: at least one chain is needed"),
        ("chains: {ethereum: {}}", "chains: must be a list, not a mapping"),
        ("chains:\n  - name: a\n   b: c\n", "line 3, column 4: "),
        ("chains:\n  - name: a\n    name: b\n", "line 3, column 5: the key 'name' is given twice"),
        ("chains: []\nchains: []\n", "line 2, column 1: the key 'chains' is given twice"),
        ("a: !!python/object:os.system {}\n", "line 1, column 4: could not determine a constructor"),
        ("[a]: b\n", "line 1, column 1: found unhashable key"),
        ("? [a]\n: b\n", "line 1, column 3: found unhashable key"),
        ("a: \x00", "not YAML: "),
    ],
)
def test_a_file_that_is_not_a_list_of_chains_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert problems(text, tmp_path)[0].startswith(message)


def test_a_file_that_is_missing_or_unreadable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        load_chains(tmp_path / "absent.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_chains(tmp_path, {})
    (tmp_path / "binary.yaml").write_bytes(b"chains: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_chains(tmp_path / "binary.yaml", {})


def test_anchors_and_merges_are_not_repeated_keys(tmp_path: Path) -> None:
    text = """
chains:
  - &base {name: a, chain_id: 1, rpc_url: "http://n"}
  - {<<: *base, name: b, chain_id: 2}
"""
    assert [chain.name for chain in load(text, tmp_path).chains] == ["a", "b"]


CHAIN = "chains: [{name: a, chain_id: 1, rpc_url: 'http://n'}, {name: b, enabled: false, chain_id: 2, rpc_url: 'http://n'}]\n"


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ("[]", "rates: must be a mapping, not a list"),
        ("{sources: []}", "rates.sources: at least one source is needed"),
        ("{max_age: 0, sources: [{kind: fixed, pairs: {A/USD: 1}}]}", "rates.max_age: must be a number from 1"),
        ("{maxage: 1, sources: [{kind: fixed, pairs: {A/USD: 1}}]}", "rates.maxage: unknown key"),
        ("{sources: [{kind: oracle}]}", "rates.sources[0].kind: must be one of fixed, chainlink, http"),
        ("{sources: [{}]}", "rates.sources[0].kind: is required"),
        ("{sources: [{kind: fixed}]}", "rates.sources[0].pairs: is required"),
        ("{sources: [{kind: fixed, pairs: {A/USD: 1.0}}]}", "rates.sources[0].pairs.A/USD: must be a decimal amount"),
        ("{sources: [{kind: fixed, pairs: {A/USD: 0}}]}", "rates.sources[0].pairs.A/USD: a rate must be above zero"),
        ("{sources: [{kind: fixed, pairs: {AUSD: 1}}]}", "rates.sources[0].pairs.AUSD: a pair is written ETH/USD"),
        (
            "{sources: [{kind: chainlink, chain: a, feeds: {A/USD: '0x1'}}]}",
            "rates.sources[0].feeds.A/USD: not an address",
        ),
        (
            f"{{sources: [{{kind: chainlink, chain: b, feeds: {{A/USD: '{USDC}'}}}}]}}",
            "rates.sources[0].chain: no enabled chain is named 'b'",
        ),
        (
            "{sources: [{kind: http, url: 'https://x/{base}', path: a}]}",
            "rates.sources[0].url: must contain {base} and",
        ),
        ("{sources: [{kind: http, url: 'ftp://x/', path: a}]}", "rates.sources[0].url: must be a URL"),
        ("{sources: [{kind: http, url: 'http://x/{base}{quote}'}]}", "rates.sources[0].path: is required"),
        (
            "{sources: [{kind: http, url: 'http://x/{base}{quote}', path: a, key: b}]}",
            "rates.sources[0].key: unknown key",
        ),
    ],
)
def test_a_mistake_in_the_rates_is_told_by_source_and_field(tmp_path: Path, rates: str, expected: str) -> None:
    (found,) = problems(f"{CHAIN}rates: {rates}", tmp_path)
    assert found.startswith(expected)


def test_the_shipped_file_watches_the_devnet_alone_and_needs_no_variable() -> None:
    shipped = load_chains(SHIPPED, {})
    assert [chain.name for chain in shipped.enabled] == ["devnet"]
    devnet = shipped.chains[0]
    assert (devnet.chain_id, devnet.rpc_urls, devnet.confirmations_required) == (31337, ("http://127.0.0.1:8545",), 3)
    assert (devnet.finality, devnet.poll_interval_s, devnet.tokens) == (Finality(depth=64), 1.0, ())
    assert {chain.sweep.mode for chain in shipped.chains} == {"off"}


def test_the_shipped_chains_can_all_be_enabled_and_hold_their_canonical_tokens(tmp_path: Path) -> None:
    text = SHIPPED.read_text().replace("enabled: false", "enabled: true")
    names = ("ETHEREUM", "BASE", "ARBITRUM", "OPTIMISM", "POLYGON", "BNB", "SEPOLIA")
    found = load(text, tmp_path, **{f"{name}_RPC_URL": "http://node" for name in names})
    assert {
        chain.name: (chain.chain_id, chain.native.symbol, {token.symbol: token.decimals for token in chain.tokens})
        for chain in found.enabled
    } == {
        "devnet": (31337, "ETH", {}),
        "ethereum": (1, "ETH", {"USDC": 6, "USDT": 6}),
        "base": (8453, "ETH", {"USDC": 6, "USDT": 6}),
        "arbitrum": (42161, "ETH", {"USDC": 6, "USDT": 6}),
        "optimism": (10, "ETH", {"USDC": 6, "USDT": 6, "USDT0": 6}),
        "polygon": (137, "POL", {"USDC": 6, "USDT": 6}),
        "bnb": (56, "BNB", {"USDC": 18, "USDT": 18}),
        "sepolia": (11155111, "ETH", {"USDC": 6}),
    }


def test_an_error_about_a_relative_path_names_it_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chains.yaml").write_text(
        "chains: [{name: ethereum, chain_id: 1, rpc_url: http://n, tokens: [{address: '0x1'}]}]"
    )
    with pytest.raises(ConfigError, match=r"^chains\.yaml: chain 'ethereum': tokens\[0\]\.symbol: is required"):
        load_chains(Path("./chains.yaml"), {})

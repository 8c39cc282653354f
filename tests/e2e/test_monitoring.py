"""Goal: what a running installation exposes is what the alerts, the dashboard and docs/monitoring.md speak of, the sums
over its processes are right, and its logs say whose line each one is."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import httpx
import promql_parser as promql
import pytest
import yaml

from app.blockchain.errors import NodeError
from app.blockchain.w3 import NoAnswerError
from devnet.ports import free_port
from tests.e2e.conftest import deploy
from tests.e2e.harness import (
    MNEMONIC,
    REPO_ROOT,
    RPC_KEY,
    START_S,
    STOP_S,
    WEBHOOK_SECRET,
    House,
    Program,
    soon,
    until,
)
from tests.e2e.test_sweeper import GAS_ACCOUNT, POLICY
from tests.support.anvil import Anvil
from tests.support.exposition import Exposition, read_exposition
from tests.support.receiver import Receiver
from tests.support.redis import RedisServer

pytestmark = pytest.mark.timeout(300)

DEPLOY: Final = REPO_ROOT / "deploy"
ALERTS: Final = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
DASHBOARD: Final = json.loads((DEPLOY / "grafana/dashboards/paywatch.json").read_text())
RULES: Final = [rule for group in ALERTS["groups"] for rule in group["rules"]]
TARGETS: Final = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
MONITORING: Final = (REPO_ROOT / "docs/monitoring.md").read_text()

# What Prometheus adds by itself.
OF_PROMETHEUS: Final = {"job", "instance"}


@dataclass(frozen=True)
class System:
    """A server and three workers that have seen payments through, a sweep and a reorganisation; by the process."""

    house: House
    workers: Sequence[Program]
    first_block: int
    api: Exposition
    others: Sequence[Exposition]
    told: Sequence[str]

    def labels_of(self, name: str) -> set[str]:
        """The labels of a metric by the name that queries use. Fails when nobody exposes it."""
        found = [labels for it in (self.api, *self.others) for labels, _ in it.samples.get(name, ())]
        assert found, f"nobody exposes {name}"
        return {label for labels in found for label in labels}

    def values_of(self, name: str, label: str) -> set[str]:
        found = [labels for it in (self.api, *self.others) for labels, _ in it.samples.get(name, ())]
        return {labels[label] for labels in found if label in labels}

    def total(self, name: str, **labels: str) -> float:
        """What Prometheus' `sum` says."""
        return sum(it.value(name, **labels) for it in (self.api, *self.others))


async def scrape(port: int) -> Exposition:
    async with httpx.AsyncClient(trust_env=False, timeout=60.0) as http:
        response = await http.get(f"http://127.0.0.1:{port}/metrics")
    assert response.status_code == 200
    return read_exposition(response.text)


@pytest.fixture(scope="module")
async def system() -> AsyncIterator[System]:
    async with Anvil(block_time=0.25) as anvil, RedisServer() as redis, Receiver(WEBHOOK_SECRET) as receiver:
        devnet = await deploy(anvil)
        house = House(devnet.chains_yaml(sweep=POLICY, ws_url=anvil.ws_url), redis_url=redis.url)
        try:
            await anvil.set_balance(GAS_ACCOUNT, 10**18)
            await house.migrate()
            await house.start()
            cursor = read_exposition((await house.client.get("/metrics")).text)
            first_block = int(cursor.value("paywatch_chain_cursor_block", chain="devnet"))
            roles = [("listener,webhook", {}), ("listener,webhook", {}), ("sweeper", {"MNEMONIC": MNEMONIC})]
            ports = [free_port() for _ in roles]
            workers = [
                house.run("-m", "app.workers", "--roles", names, METRICS_PORT=str(port), **key)
                for port, (names, key) in zip(ports, roles, strict=True)
            ]
            for worker in workers:
                await until(lambda it=worker: soon("workers started" in it.output), "a worker's start", START_S)
            payments = [await house.create(token, "2", webhook_url=receiver.url) for token in ("ETH", "USDC")]
            for payment in payments:
                await devnet.pay(payment)
            for payment in payments:
                await house.reaches(payment["id"], "settled")
            await anvil.mine_every(0)
            while not sum([(await scrape(port)).value("paywatch_reorg_depth_blocks_count") for port in ports]):
                # Again, if the scanner had not come to the blocks that are taken back.
                await house.cursor_reaches(await anvil.block_number())
                await anvil.reorg(2)
                await anvil.mine(2)
                await house.cursor_reaches(await anvil.block_number())
            await house.has_told()
            await house.client.get("/v1/payments/" + "x" * 30)
            found = await asyncio.gather(*(scrape(port) for port in (house.port, *ports)))
            told = [request.webhook_id for request in receiver.requests]
            yield System(house, workers, first_block, found[0], found[1:], told)
        finally:
            await house.close()


@pytest.fixture(autouse=True)
async def house(system: System) -> House:
    """By its name, the logs are shown on failure."""
    return system.house


# --- what the queries ask for


def queries() -> list[tuple[str, str, str]]:
    """(who asks, query, text that names labels of its answer) of every alert and every panel."""
    found = [(rule["alert"], rule["expr"], " ".join(rule["annotations"].values())) for rule in RULES]
    for panel in DASHBOARD["panels"]:
        of_panel = panel.get("targets", ())
        found += [(f"{panel['title']} {it['refId']}", it["expr"], it["legendFormat"]) for it in of_panel]
    return found


def selectors(query: str) -> list[promql.VectorSelector]:
    found: list[promql.VectorSelector] = []

    def note(node: promql.Expr) -> bool:
        selector = node.vector_selector if isinstance(node, promql.MatrixSelector) else node
        if isinstance(selector, promql.VectorSelector):
            found.append(selector)
        return True

    promql.walk(promql.parse(query), pre_visit=note)
    return found


def groupings(query: str) -> list[set[str]]:
    """The labels of each `by (…)` and `on (…)`."""
    return [set(re.findall(r"\w+", names)) for names in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query)]


def known_values(name: str, label: str) -> set[str] | None:
    """All values that a label can have, for those whose every value is ours to choose."""
    if label == "outcome" and name.startswith("paywatch_rpc"):
        errors: list[type[NodeError]] = [NodeError]
        kinds = {NoAnswerError.outcome}
        for error in errors:
            errors += error.__subclasses__()
            kinds.add(error.outcome)
        return kinds | {"ok", "cancelled"}
    if label == "outcome" and name.startswith("paywatch_job"):
        return {"ok", "failed", "error", "cancelled"}
    return None


@pytest.mark.parametrize(("who", "query", "text"), [pytest.param(*each, id=each[0]) for each in queries()])
async def test_each_query_finds_its_metrics_and_labels(system: System, who: str, query: str, text: str) -> None:
    query = query.replace("$__rate_interval", "5m").replace("$chain", ".*")
    asked = selectors(query)
    assert asked, who
    there: set[str] = set(OF_PROMETHEUS)
    for selector in asked:
        name = selector.name
        assert name is not None
        has = OF_PROMETHEUS if name == "up" else OF_PROMETHEUS | system.labels_of(name)
        there |= has
        for matcher in selector.matchers.matchers:
            assert matcher.name in has, f"{name} has no label {matcher.name}"
            values = system.values_of(name, matcher.name) | (known_values(name, matcher.name) or set())
            if matcher.name in OF_PROMETHEUS or matcher.op == promql.MatchOp.NotRe or matcher.value == "5..":
                continue
            for value in matcher.value.split("|") if matcher.op == promql.MatchOp.Re else [matcher.value]:
                pattern = value if matcher.op == promql.MatchOp.Re else re.escape(value)
                assert any(re.fullmatch(pattern, each) for each in values), f"{name}: {value}"
    for labels in groupings(query):
        assert labels <= there, who
    kept = set.union(*groupings(query)) if groupings(query) else there
    named = re.findall(r"\$labels\.(\w+)", text) + re.findall(r"\{\{(\w+)\}\}", text)
    assert set(named) <= kept, f"{who} names a label that its answer does not have"


# --- the files


def test_the_alerts_are_well_formed() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
    assert set(ALERTS) == {"groups"}
    for group in ALERTS["groups"]:
        assert set(group) == {"name", "rules"}
    for rule in RULES:
        assert (
            {"alert", "expr", "labels", "annotations"} <= set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        )
        assert re.fullmatch(r"[A-Z][A-Za-z0-9]+", rule["alert"])
        assert promql.parse_duration(rule.get("for", "1m")) >= timedelta(minutes=1)
        assert rule["labels"]["severity"] in ("page", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "action", "docs"}
        page, _, anchor = rule["annotations"]["docs"].partition("#")
        headings = re.findall(r"^## (.*)$", (REPO_ROOT / page).read_text(), re.MULTILINE)
        assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


def test_prometheus_is_told_of_the_rules_and_of_jobs_that_the_alerts_name() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    for interval in config["global"].values():
        promql.parse_duration(interval)
    jobs = [job["job_name"] for job in config["scrape_configs"]]
    assert all(job.startswith("paywatch-") for job in jobs)
    names = {name for job in config["scrape_configs"] for found in job["dns_sd_configs"] for name in found["names"]}
    assert names == {"api", "worker", "sweeper"}, "services of docker-compose.yml"


def test_the_dashboard_can_be_provisioned() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("paywatch", "Paywatch")
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in DASHBOARD["panels"]:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", ()))
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = {name for target in TARGETS for name in re.findall(r"\$(\w+)", target["expr"])} - {"__rate_interval"}
    assert used <= variables
    provisioning = DEPLOY / "grafana/provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards/paywatch.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"]
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"


# --- what is exposed


def documented() -> dict[str, set[str]]:
    """The labels of each metric that docs/monitoring.md describes."""
    rows = re.findall(r"^\| `(paywatch_\w+)` \|([^|]*)\|", MONITORING, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def exposed(system: System) -> dict[str, set[str]]:
    """By the names that the page uses: a histogram's without `_bucket`, a counter's with `_total`."""
    found: dict[str, set[str]] = {}
    for it in (system.api, *system.others):
        for name in it.samples:
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            if it.families.get(base) != "histogram":
                base = name
            if name != f"{base}_bucket":
                found[base] = system.labels_of(name)
    return {name: labels for name, labels in found.items() if name.startswith("paywatch_")}


async def test_the_page_describes_every_metric_and_no_other(system: System) -> None:
    assert documented() == exposed(system)


async def test_names_say_their_units(system: System) -> None:
    units = ("seconds", "blocks", "block", "wei", "connections", "bytes")
    for it in (system.api, *system.others):
        for name, kind in it.families.items():
            if not name.startswith("paywatch_"):
                continue
            if kind == "counter":  # its samples end in _total
                assert not set(it.samples) & {name, f"{name}_sum"}
            else:
                assert not name.endswith("_total")
            assert kind != "histogram" or name.endswith(units), name


async def test_no_label_holds_a_key_an_id_or_an_address(system: System) -> None:
    for it in (system.api, *system.others):
        assert RPC_KEY not in it.text
        for samples in it.samples.values():
            for labels, _ in samples:
                for value in labels.values():
                    assert not re.search(r"0x[0-9a-fA-F]{40}|[a-z]{3}_[0-9A-Z]{26}|xxx", value), labels
    assert system.api.value("paywatch_http_request_seconds_count", route="/v1/payments/{payment_id}", status="404") == 1


async def test_the_processes_add_up(system: System) -> None:
    """Two listeners share a chain: each block is counted by one of them."""
    cursor = system.api.value("paywatch_chain_cursor_block", chain="devnet")
    scanned = system.total("paywatch_blocks_scanned_total", chain="devnet")
    taken_back = system.total("paywatch_reorg_depth_blocks_sum", chain="devnet")
    assert taken_back >= 1
    assert scanned == cursor - system.first_block + taken_back
    assert system.total("paywatch_transfers_total") == 2
    for event in ("created", "detected", "confirmed"):
        assert system.total("paywatch_payment_events_total", type=f"payment.{event}") == 2
    told = system.total("paywatch_webhook_attempt_seconds_count", outcome="delivered")
    assert told == len(system.told)
    assert [it.value("paywatch_chain_cursor_block") for it in system.others] == [0, 0, 0]  # the API's to tell


async def test_a_payments_way_is_measured_from_its_block(system: System) -> None:
    for name in ("paywatch_payment_detected_seconds", "paywatch_payment_confirmed_seconds"):
        assert system.total(f"{name}_count", chain="devnet") == 2
    for event in ("payment.detected", "payment.confirmed"):
        assert system.total("paywatch_payment_told_seconds_count", type=event) == 2
    assert system.total("paywatch_payment_told_seconds_sum") >= system.total("paywatch_payment_detected_seconds_sum")


async def test_jobs_and_nodes_are_counted_by_whoever_works(system: System) -> None:
    for task in ("listen_for_payments", "send_webhook_task", "backup_pass", "reconcile", "housekeeping", "sweep_funds"):
        assert system.total("paywatch_job_seconds_count", task=task, outcome="ok") > 0, task
        assert system.api.value("paywatch_job_seconds_count", task=task) == 0
    assert system.others[2].value("paywatch_rpc_calls_total", method="eth_sendRawTransaction") > 0
    assert system.api.value("paywatch_sweeps", status="confirmed") > 0
    for it in (system.api, *system.others):
        assert it.value("paywatch_event_loop_lag_seconds_count") > 0
        assert it.value("paywatch_db_pool_limit_connections") > 0
        assert it.value("process_resident_memory_bytes") > 0


# --- logs


def lines(program: Program) -> list[dict[str, Any]]:
    return [json.loads(line) for line in program.output.splitlines() if line.startswith("{")]


async def test_each_line_says_whose_it_is(system: System) -> None:
    assert system.house.server is not None
    of_workers = [line for worker in system.workers for line in lines(worker)]
    tasks = {line["task"] for line in of_workers if "task" in line}
    assert {"listen_for_payments", "sweep_funds", "send_webhook_task"} <= tasks
    for line in of_workers:
        assert "task" in line or line["logger"] in ("app.workers.runner", "app.workers.exposed"), line
        if line.get("task") in ("listen_for_payments", "sweep_funds"):
            assert line["chain"] == "devnet", line
        if line["event"] in ("payment changed", "webhook delivered"):
            assert line["payment"].startswith("pay_"), line
    requests = [line for line in lines(system.house.server) if line["event"] == "request"]
    assert all(line["request_id"].startswith("req_") for line in requests)
    creations = [line for line in requests if line["method"] == "POST"]
    assert {line["payment"] for line in creations} == {line["payment"] for line in of_workers if "payment" in line}


async def test_the_last_lines_are_in_order(system: System) -> None:
    """The last test of the file: it stops everything."""
    assert system.house.server is not None
    ends = {"workers stopped", "stopped", "stopping", "worker stopped"}
    for program in (*system.workers, system.house.server):
        program.send(signal.SIGTERM)
        assert await program.ended(STOP_S) == 0
        said = [line for line in lines(program) if line["event"] in ends]
        assert said[0]["event"] == "stopping"
        assert said[0]["signal"] == "SIGTERM"
        assert said[-1]["event"] == "stopped"
        roles = [line["role"] for line in said if line["event"] == "worker stopped"]
        if program in system.workers:
            assert [line["event"] for line in said[-2:]] == ["workers stopped", "stopped"]
            assert set(roles) in ({"listener", "webhook"}, {"sweeper"})

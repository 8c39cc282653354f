"""Redis, the queues in it, and what the processes tell of themselves there."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from arq.connections import ArqRedis
from redis.exceptions import RedisError, ResponseError

from app import __version__
from app.core import limits, pulse, queue
from app.core.clock import utc_now
from app.core.logger import redact_url
from app.core.vitals import Vitals
from app.services.blockchain.sweeper import swept_chains
from app.services.doctor.finding import Finding, Patient, failed, ok, warning

_MEBIBYTE = 1_048_576


@asynccontextmanager
async def asking(patient: Patient) -> AsyncIterator[ArqRedis]:
    redis = queue.connect(patient.redis_url)
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)


def roles(patient: Patient) -> list[str]:
    """Those that somebody must work for."""
    return ["listener", "webhook", *(["sweeper"] if swept_chains(patient.context) else [])]


async def check_redis(patient: Patient) -> list[Finding]:
    """Whether it answers, and keeps what it is given; what needs it is not looked at otherwise."""
    if not patient.redis_url:
        patient.down["redis"] = "no server runs here"
        found = "embedded mode: its Redis runs inside the server, and no server runs in this folder"
        return [failed("redis", found, patient.start_server)]
    try:
        async with asking(patient) as redis:
            await redis.ping()
            memory = await _memory(redis)
    except (RedisError, OSError) as error:
        patient.down["redis"] = "Redis is away"
        remedy = "python server.py" if patient.context.settings.embedded else "start Redis, or mend PAYWATCH_REDIS_URL"
        return [failed("redis", f"{redact_url(patient.redis_url)}: {type(error).__name__}", remedy)]
    return [ok("redis", "answers"), memory]


async def _memory(redis: ArqRedis) -> Finding:
    try:
        info = await redis.info("memory")
    except ResponseError:
        return ok("redis memory", "not told: INFO is not allowed here")
    policy, most, used = str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0)), int(info["used_memory"])
    found = f"{used // _MEBIBYTE} MiB used, maxmemory {most // _MEBIBYTE} MiB, {policy}"
    if most and policy != "noeviction":
        return warning(
            "redis memory",
            f"{found}: it may drop jobs and heartbeats",
            "redis-cli CONFIG SET maxmemory-policy noeviction",
        )
    if most and used > most * 9 // 10:
        return warning("redis memory", f"{found}: nearly full", "redis-cli CONFIG SET maxmemory to more, or 0")
    return ok("redis memory", found)


async def check_queues(patient: Patient) -> list[Finding]:
    """How many jobs wait for each role, and for how long."""
    found: list[Finding] = []
    now_s = utc_now().timestamp()
    async with asking(patient) as redis:
        for role in roles(patient):
            jobs = await redis.zcard(queue.queue_name(role))
            first = await redis.zrange(queue.queue_name(role), 0, 0, withscores=True)
            oldest_s = max(now_s - first[0][1] / 1000, 0.0) if first else 0.0
            told = f"{jobs} jobs, the oldest for {oldest_s:.0f} s"
            if oldest_s > limits.DOCTOR_QUEUE_S:
                found.append(failed(f"queue:{role}", told, patient.start_worker(role)))
            elif jobs > limits.DOCTOR_QUEUE_JOBS:
                found.append(warning(f"queue:{role}", told, f"start another worker: {patient.start_worker(role)}"))
            else:
                found.append(ok(f"queue:{role}", told if jobs else "empty"))
    return found


async def check_workers(patient: Patient) -> list[Finding]:
    """A heartbeat of each role, and the vitals of every process."""
    found: list[Finding] = []
    async with asking(patient) as redis:
        for role in roles(patient):
            alive = await pulse.count_alive(redis, role)
            if not alive:
                what = f"no worker of this role has a heartbeat ({' and '.join(_tasks(role))} stand still)"
                remedy = patient.start_worker(role)
                if role == "sweeper":  # one without a key runs and does nothing
                    remedy += ", with PAYWATCH_MNEMONIC or PAYWATCH_KEYSTORE_FILE in its environment"
                found.append(failed(f"worker:{role}", what, remedy))
            else:
                found.append(ok(f"worker:{role}", f"{alive} alive"))
        processes = await read_vitals(redis)
    found += _told(processes)
    if not any(each.role == "server" for each in processes):
        found.append(failed("process:server", "no API server tells of itself", patient.start_server))
    return found + _misplaced_key(patient, processes)


async def read_vitals(redis: ArqRedis) -> list[Vitals]:
    """What all processes told within the last VITALS_EXPIRE_S: who is missing among the first few may be there."""
    keys: set[str] = set()
    async for key in redis.scan_iter(match=f"{queue.VITALS_PREFIX}*", count=limits.PAGE_MAX):
        keys.add(key.decode())
        if len(keys) == limits.DOCTOR_PROCESSES:
            break
    found: list[Vitals] = []
    for key in keys:
        fields = await redis.hgetall(key)  # type: ignore[misc]  # typed for the synchronous client too
        try:
            found.append(Vitals.read({name.decode(): value.decode() for name, value in fields.items()}))
        except (KeyError, ValueError):
            continue  # ended meanwhile, or of another version
    return sorted(found, key=lambda each: (each.role, each.host, each.pid))


def _told(processes: Sequence[Vitals]) -> list[Finding]:
    """Each process that something is wrong with, and of the others the first few."""
    found = [_process(each) for each in processes]
    well = [finding for finding in found if finding.result == "ok"]
    left_out = well[limits.DOCTOR_ROWS :]
    told = [finding for finding in found if finding.result != "ok"] + well[: limits.DOCTOR_ROWS]
    return told + ([ok("processes", f"{len(left_out)} more are well")] if left_out else [])


def _tasks(role: str) -> Sequence[str]:
    return {
        "listener": (queue.LISTEN_TASK, queue.BACKUP_TASK, queue.RECONCILE_TASK),
        "webhook": (queue.WEBHOOK_TASK, queue.HOUSEKEEPING_TASK),
        "sweeper": (queue.SWEEP_TASK,),
    }[role]


def _process(each: Vitals) -> Finding:
    check = f"process:{each.role}"
    found = f"{each.host}, pid {each.pid}, version {each.version}, up since {each.started_at[:19]}Z: "
    found += f"event loop {each.loop_lag_s * 1000:.0f} ms late at worst, {each.rss_bytes // _MEBIBYTE} MiB"
    # By its service, never by its pid: that is a container's or another host's, and somebody else's here.
    restart = f"restart the {each.role} on {each.host} by its service (docker compose or systemctl restart)"
    wrong: list[tuple[str, str]] = []
    out_of_connections = 0 < each.pool_limit <= each.pool_in_use
    if out_of_connections:
        what = f"all of its {each.pool_limit} database connections are in use, so that requests and jobs wait for one"
        wrong.append((what, "end what `locks` and `slow queries` name here; else start another process beside it"))
    if each.loop_lag_s > limits.DOCTOR_LOOP_LAG_S:
        wrong.append(("the loop is blocked", "give it more CPU, or start another process beside it"))
    if each.rss_bytes > limits.DOCTOR_RSS_BYTES:
        wrong.append(("that is much", f"{restart}: it loses nothing"))
    if each.version != __version__:
        wrong.append((f"this is version {__version__}", restart))
    if not wrong:
        return ok(check, found)
    told = failed if out_of_connections else warning
    return told(check, "; ".join((found, *(what for what, _ in wrong))), "; ".join(remedy for _, remedy in wrong))


def _misplaced_key(patient: Patient, processes: Sequence[Vitals]) -> list[Finding]:
    settings, here = patient.context.settings, socket.gethostname()
    serves = any(each.role == "server" and each.host == here for each in processes)
    if settings.embedded or not settings.has_private_key or not serves:
        return []
    found = f"{here} runs the API server, and has a private key in its settings"
    remedy = "set PAYWATCH_XPUB here, and move PAYWATCH_MNEMONIC or PAYWATCH_KEYSTORE_FILE to the sweeper's host"
    return [failed("api host", found, remedy)]

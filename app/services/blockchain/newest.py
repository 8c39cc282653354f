"""Whether a chain's node stands still, or is behind the others: its answers are all well formed, and all old."""

import asyncio
import time

from app.blockchain.errors import NodeBehindError, NodeError
from app.blockchain.headers import Header, fetch_header
from app.blockchain.rpc import Endpoint
from app.core import limits
from app.core.chains import Chain
from app.core.logger import get_logger
from app.services.blockchain.chains import require_same_chain
from app.services.blockchain.plan import Plan
from app.services.context import Context

log = get_logger(__name__)


def stands_still(chain: Chain, plan: Plan) -> bool:
    """Whether the head is older than any of this chain can be."""
    return chain.max_head_age_s is not None and plan.head_age_s > chain.max_head_age_s


async def require_newest(context: Context, chain: Chain, endpoint: Endpoint, plan: Plan) -> None:
    """Compare an old head with the other endpoints'. Raises NodeBehindError when one of them is higher.

    A young head costs nothing, an old one a call to each other endpoint every HEAD_COMPARE_EVERY_S. One that is behind
    is compared again whenever it is asked: else it could undo what the others showed.
    """
    nodes = context.nodes.nodes(chain)
    if plan.head_age_s < limits.HEAD_OLD_S or time.monotonic() - nodes.compared_at < limits.HEAD_COMPARE_EVERY_S:
        return
    others = nodes.others(endpoint)
    heads = await asyncio.gather(*(_head(context, chain, other) for other in others))
    for other, head in zip(others, heads, strict=True):
        if head is not None and head.number > plan.head.number:
            found = f"its newest block {plan.head.number} is {plan.head_age_s:.0f} s old"
            raise NodeBehindError(f"{found}, and {other.name} has block {head.number}")
    nodes.compared_at = time.monotonic()


async def _head(context: Context, chain: Chain, endpoint: Endpoint) -> Header | None:
    try:
        async with asyncio.timeout(limits.OTHER_NODES_S):
            await require_same_chain(context, chain, endpoint)
            return await fetch_header(endpoint, "latest")
    except (NodeError, TimeoutError) as error:
        reason = str(error) or "no answer"
        log.warning("node not comparable", chain=chain.name, endpoint=endpoint.name, reason=reason)
        return None

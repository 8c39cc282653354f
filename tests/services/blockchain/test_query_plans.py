"""Goal: what runs with every block and every round reads rows by an index, however many rows there are."""

import pytest

from app.services.blockchain.backup import backup_pass
from app.services.blockchain.reconcile import reconcile_chain
from tests.services.blockchain.sweeping import ROUNDS_MAX, OpenSwept
from tests.support.plans import watched_statements


@pytest.mark.parametrize("mode", ["auto", "topup"])
async def test_no_step_and_no_round_reads_a_whole_table(
    open_swept: OpenSwept, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Paid, swept, expired, paid late, reorganised, finalized, read again and reconciled."""
    native = "{symbol: ETH, decimals: 18, detect: balances}"
    with watched_statements(monkeypatch) as statements:
        async with open_swept(mode=mode, native=native) as swept:
            watch = swept.watch
            payments = [*await swept.confirmed_many(2), await swept.confirmed("ETH", "1")]
            late = await watch.create("ETH", "1")
            await watch.expire_at(late, 60)
            await watch.mine_and_scan()
            await watch.pay(late)
            statuses = set[str]()
            for _ in range(ROUNDS_MAX):
                await swept.turn()
                statuses = {(await watch.get(each)).status for each in [*payments, late]}
                if statuses == {"settled"}:
                    break
            assert statuses == {"settled"}
            await watch.anvil.reorg(2)
            await watch.mine_and_scan(70)
            assert await backup_pass(watch.context, watch.chain) is not None
            await reconcile_chain(watch.context, watch.chain)
            assert await statements.reading_whole_tables(watch.context.db) == []

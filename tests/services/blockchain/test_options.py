"""Goal: a payment with several options, paid on a real chain, is completed by the first that is fully paid."""

from app.services.payments import Accepted, NewPayment, Price
from tests.services.blockchain.conftest import OpenWatch

RATES = """
rates:
  sources:
    - {kind: fixed, pairs: {USDC/USD: "1", ETH/USD: "2500"}}
"""


def wanted() -> NewPayment:
    """25 USD: 0.01 ETH or 25 USDC."""
    ways = [Accepted("devnet", "ETH"), Accepted("devnet", "USDC")]
    return NewPayment(price=Price("25", "USD"), accept=ways, webhook_url="https://shop.example.com/hook")


async def test_half_in_ether_and_all_in_tokens_is_paid_by_the_tokens(opened: OpenWatch) -> None:
    async with opened(rates=RATES) as watch:
        payment = await watch.create_wanted(wanted())
        await watch.pay(payment, 5 * 10**15, token="ETH")
        await watch.mine_and_scan()
        half = await watch.get(payment)
        assert (half.status, half.flags, half.token, half.amount_due) == ("pending", ["underpaid"], "ETH", "0.005")
        assert [each.amount_due for each in half.options] == ["0.005", "25"]

        await watch.pay(payment, 25_000_000, token="USDC")
        await watch.mine_and_scan(3)
        done = await watch.get(payment)
        assert (done.status, done.flags, done.token, done.amount) == ("confirmed", ["overpaid"], "USDC", "25")
        assert [(each.amount_received, each.amount_due) for each in done.options] == [("0.005", "0"), ("25", "0")]
        assert await watch.told(payment) == "created underpaid detected overpaid confirmed"
        await watch.audit()


async def test_two_halves_are_no_whole_and_the_rest_of_one_completes(opened: OpenWatch) -> None:
    async with opened(rates=RATES) as watch:
        payment = await watch.create_wanted(wanted())
        await watch.pay(payment, 5 * 10**15, token="ETH")
        await watch.pay(payment, 12_500_000, token="USDC")
        await watch.mine_and_scan(3)
        halves = await watch.get(payment)
        assert (halves.status, halves.flags, halves.token) == ("pending", ["underpaid"], "ETH")
        await watch.pay(payment, 5 * 10**15, token="ETH")
        await watch.mine_and_scan()
        done = await watch.get(payment)
        assert (done.status, done.flags, done.token) == ("detected", ["overpaid"], "ETH")
        assert [each.amount_due for each in done.options] == ["0", "0"]
        await watch.audit()


async def test_a_reorg_that_takes_the_money_back_makes_every_option_due_again(opened: OpenWatch) -> None:
    async with opened(rates=RATES) as watch:
        payment = await watch.create_wanted(wanted())
        await watch.pay(payment, 25_000_000, token="USDC")
        await watch.mine_and_scan()
        assert [each.amount_due for each in (await watch.get(payment)).options] == ["0", "0"]
        await watch.anvil.reorg(1)
        await watch.mine_and_scan()
        back = await watch.get(payment)
        assert (back.status, back.amount_due) == ("pending", "0.01")
        assert [each.amount_due for each in back.options] == ["0.01", "25"]

"""Transactions that a test signs itself and mines."""

from app.blockchain.fees import Fees, read_fees
from app.blockchain.receipts import fetch_receipts
from app.blockchain.rpc import Endpoint
from app.blockchain.sending import Outcome, broadcast, estimate, read_accounts
from app.blockchain.signer import Action, SigningAccount
from app.blockchain.wire import RawReceipt
from tests.support.anvil import Anvil


async def send(
    anvil: Anvil,
    endpoint: Endpoint,
    account: SigningAccount,
    action: Action,
    *,
    gas: int | None = None,
    fees: Fees | None = None,
) -> RawReceipt:
    """Sign with the account's next nonce, broadcast, mine a block; its receipt, whether it succeeded or not."""
    tx = account.sign(
        action,
        chain_id=anvil.chain_id,
        nonce=(await read_accounts(endpoint, [account.address]))[account.address].nonce,
        gas=gas or await estimate(endpoint, account.address, action),
        fees=fees or await read_fees(endpoint),
    )
    sent = await broadcast(endpoint, tx.raw)
    assert sent.outcome is Outcome.ACCEPTED, sent
    await anvil.mine()
    receipt = (await fetch_receipts(endpoint, [tx.hash]))[tx.hash]
    assert receipt is not None
    return receipt

"""What `KEEP=1` prints: where everything is, and commands to try, ready to be pasted."""

from demo.gateway import API_KEY, CHAIN, Gateway
from devnet.anvil import Anvil

PAYER_INDEX = 3
WEI = 10**16


def invitation(node: Anvil, gateway: Gateway) -> str:
    payer = node.accounts[PAYER_INDEX]
    return f"""
Everything keeps running until Ctrl-C.

  API       {gateway.url}/v1      docs at {gateway.url}/docs
  API key   {API_KEY}
  node      {node.url}      chain id {node.chain_id}
  log       {gateway.log_path}

Create a payment:

  curl -s {gateway.url}/v1/payments -H 'Authorization: Bearer {API_KEY}' \\
    -H 'Content-Type: application/json' -d '{{"chain": "{CHAIN}", "token": "ETH", "amount": "0.01"}}'

Pay it, with its address in place of ADDRESS; the node signs for {payer}:

  curl -s {node.url} -H 'Content-Type: application/json' -d '{{"jsonrpc": "2.0", "id": 1,
    "method": "eth_sendTransaction", "params": [{{"from": "{payer}",
    "to": "ADDRESS", "value": "{WEI:#x}"}}]}}'

Look at it, with its id in place of ID:

  curl -s {gateway.url}/v1/payments/ID -H 'Authorization: Bearer {API_KEY}'
"""

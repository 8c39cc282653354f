"""web3's HTTP provider with msgspec for decoding and no retries of its own."""

import sys
from typing import Any, cast

import msgspec
from aiohttp import ClientError, ClientTimeout
from eth_typing import URI
from web3 import AsyncHTTPProvider
from web3.types import RPCEndpoint, RPCResponse

from app.blockchain.errors import TransientError, from_http
from app.core import limits

# py_ecc, which comes with web3, sets 100,000: JSON nested that deep, from a node or a page, would then not raise
# RecursionError but overflow the C stack and end the process.
sys.setrecursionlimit(limits.RECURSION_LEVELS)


class NoAnswerError(TransientError):
    """A node that hangs. Asked once more it would outlast the step, which then ends without letting the node rest."""

    retryable = False
    outcome = "timeout"


class NodeProvider(AsyncHTTPProvider):
    """One node over HTTP.

    The provider's built-in retries are off: they would multiply those of `Endpoint`. Bodies of other answers than 200
    are read for their reason, because some nodes answer errors with 4xx and a JSON-RPC error inside.
    """

    def __init__(self, url: str) -> None:
        super().__init__(URI(url), exception_retry_configuration=None)
        self._timeout = ClientTimeout(total=limits.RPC_TIMEOUT_S)

    async def _make_request(self, method: RPCEndpoint, request_data: bytes) -> bytes:
        return await self.post(method, request_data)

    @staticmethod
    def decode_rpc_response(raw_response: bytes) -> RPCResponse:
        return cast(RPCResponse, msgspec.json.decode(raw_response))

    async def post(self, method: str, payload: bytes) -> bytes:
        """Send one JSON-RPC request or batch; returns the raw body.

        Raises NodeError: NoAnswerError or TransientError when there is no answer, else what the answer means.
        """
        try:
            session = await self._request_session_manager.async_cache_and_return_session(
                cast(URI, self.endpoint_uri), request_timeout=self._timeout
            )
            async with session.post(
                cast(str, self.endpoint_uri),
                data=payload,
                headers=self.get_request_headers(),
                timeout=self._timeout,
                raise_for_status=False,
            ) as response:
                body: bytes = await response.read()
        except TimeoutError as error:
            raise NoAnswerError(f"{method}: no answer in {limits.RPC_TIMEOUT_S:.0f} s") from error
        except (ClientError, OSError) as error:
            # The message of an aiohttp error may hold the URL, and the URL a key: its type says enough.
            raise TransientError(f"{method}: {type(error).__name__}") from error
        if response.status != 200:
            raise from_http(response.status, body.decode(errors="replace"), method, response.headers.get("Retry-After"))
        return body


def encode(calls: list[tuple[str, list[Any]]], batch: bool) -> bytes:
    """JSON-RPC 2.0 requests with ids 0…n-1."""
    requests = [
        {"jsonrpc": "2.0", "id": index, "method": method, "params": params}
        for index, (method, params) in enumerate(calls)
    ]
    return msgspec.json.encode(requests if batch else requests[0])

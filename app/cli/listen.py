"""`paywatch webhooks listen`: a receiver that verifies what comes and prints it, for a developer's own machine."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from standardwebhooks import Webhook, WebhookVerificationError
from standardwebhooks.webhooks import EmptyWebhookSecretError

from app.core.errors import ConfigError

BODY_BYTES: Final = 1_048_576  # far more than any webhook of ours


class Listener(ThreadingHTTPServer):
    """Answers 204 to what is verified, 401 to anything else, and tells `say` a line or more of each.

    Raises ConfigError when it cannot listen there.
    """

    def __init__(self, host: str, port: int, secret: str, say: Callable[[str], None]) -> None:
        try:
            self.webhook = Webhook(secret)
        except (ValueError, EmptyWebhookSecretError):
            raise ConfigError("the secret must be whsec_ and base64, as an endpoint's first answer shows it") from None
        self.say = say
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--host {host} --port {port}: cannot listen there: {error}") from None

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Listener
    protocol_version = "HTTP/1.1"
    timeout = 10  # seconds for a sender that stops in the middle

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > BODY_BYTES:
            self.close_connection = True  # what is not read would be taken for the next request
            self._answer(413, f"refused   content-length {length[:20]!r}")
            return
        body = self.rfile.read(int(length))
        try:
            event = self.server.webhook.verify(body, dict(self.headers))
        except (WebhookVerificationError, ValueError) as error:  # ValueError: not even well formed
            self._answer(401, f"refused   {str(error) or 'not verified'}")
            return
        shown = json.dumps(event, indent=2, ensure_ascii=False)
        self._answer(204, f"verified  {self.headers['webhook-id']}  {_summary(event)}\n{shown}")

    def _answer(self, status: int, line: str) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()
        self.server.say(line)

    def log_message(self, *_args: Any) -> None:
        """The line of `_answer` says it."""


def _summary(event: Any) -> str:
    if not isinstance(event, dict) or not isinstance(event.get("data"), dict):
        return "(not a webhook of Paywatch's)"
    data = event["data"]
    details = [f"{name} {data[name]}" for name in ("status", "version", "order_id") if data.get(name) is not None]
    return "  ".join([str(event.get("type")), str(data.get("id")), *details])

"""What the gateway refuses."""

import httpx


class PaywatchError(Exception):
    """An RFC 9457 problem. `code` is for programs; `errors` names wrong fields as {path, message}.

    A proxy's answer that is no problem has the code `http_<status>`. Transport errors stay httpx's own.
    """

    def __init__(self, response: httpx.Response) -> None:
        try:
            body = response.json()
        except ValueError:
            body = {}
        problem = body if isinstance(body, dict) else {}
        self.status = response.status_code
        self.code: str = problem.get("code", f"http_{self.status}")
        self.detail: str = problem.get("detail", response.reason_phrase)
        self.errors: list[dict[str, str]] = problem.get("errors", [])
        self.request_id: str | None = problem.get("request_id", response.headers.get("x-request-id"))
        super().__init__(f"{self.code}: {self.detail} (request {self.request_id})")

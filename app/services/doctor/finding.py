"""What a check found, and what the checks of one run share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from app.blockchain.rpc import Endpoint
from app.core.chains import Chain
from app.services.context import Context

Result = Literal["ok", "warning", "failed"]
RESTART: Final = "then restart server and workers"  # which read chains.yaml when they start, and never again
Thing = Literal["settings", "chains.yaml", "database", "schema", "redis"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` names what was looked at, such as `chain:devnet`; `remedy` is what to do, empty when it is ok."""

    check: str
    result: Result
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, "warning", found, remedy)


def failed(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, "failed", found, remedy)


@dataclass
class Patient:
    """An installation that may be broken anywhere.

    `context` stands on defaults where settings are wrong, so a check names in its `needs` what must be well for it;
    `down` says why a thing is not. `nodes`: by chain, an endpoint that was found well.
    """

    context: Context
    redis_url: str
    down: dict[Thing, str] = field(default_factory=dict)
    nodes: dict[str, Endpoint] = field(default_factory=dict)

    @property
    def chains(self) -> Sequence[Chain]:
        return self.context.chains.enabled

    @property
    def start_server(self) -> str:
        return "python server.py"

    def start_worker(self, role: str) -> str:
        """The command that starts a worker of a role: embedded the server is it."""
        return "python server.py" if self.context.settings.embedded else f"python -m app.workers --roles {role}"

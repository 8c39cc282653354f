"""What the services of one process share."""

from dataclasses import dataclass, field
from functools import cached_property

from app.blockchain.manager import BlockchainManager
from app.core.chains import Chain, ChainsFile
from app.core.config import Settings
from app.core.errors import UnknownChain
from app.core.netguard import NetGuard
from app.core.secret_key import load_or_create_secret_key
from app.core.secrets import SecretBox
from app.db.engine import Database
from app.db.repositories.addresses import Indexes
from app.services.blockchain.ahead import Ahead
from app.services.blockchain.rotation import Rotation
from app.services.rate_book import RateBook
from app.services.watched import WatchedBook


@dataclass(frozen=True)
class Context:
    """Settings, chains, database and nodes. Everything here is made once and closed once."""

    settings: Settings
    chains: ChainsFile
    db: Database
    nodes: BlockchainManager
    box: SecretBox
    guard: NetGuard
    ahead: Ahead = field(default_factory=Ahead)
    rotation: Rotation = field(default_factory=Rotation)
    rates: RateBook = field(default_factory=RateBook)
    watched: WatchedBook = field(default_factory=WatchedBook)
    indexes: Indexes = field(default_factory=Indexes)
    # Ids of the transfer and the outflow that were last looked at again, by chain id: the next look goes on from there.
    looked_transfers: dict[int, int] = field(default_factory=dict)
    looked_outflows: dict[int, int] = field(default_factory=dict)
    # Id of the payment that was last decided because of its confirmations, by chain id, to the same end.
    looked_payments: dict[int, str] = field(default_factory=dict)
    # What this process found wrong with a chain when it checked it, by chain id.
    mismatches: dict[int, str] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, Chain]:
        return {chain.name: chain for chain in self.chains.enabled}

    @cached_property
    def by_id(self) -> dict[int, Chain]:
        return {chain.chain_id: chain for chain in self.chains.chains}

    def chain(self, name: str) -> Chain:
        """An enabled chain by its name. Raises UnknownChain."""
        if name not in self.by_name:
            raise UnknownChain(f"there is no chain {name!r}; configured are {', '.join(sorted(self.by_name))}")
        return self.by_name[name]

    async def close(self) -> None:
        self.ahead.close()
        await self.rates.close()
        await self.nodes.close()
        await self.db.close()


def open_context(settings: Settings, chains: ChainsFile) -> Context:
    """The context of a process. Raises ConfigError."""
    return Context(
        settings=settings,
        chains=chains,
        db=Database(settings.database_url),
        nodes=BlockchainManager(chains.enabled),
        box=SecretBox(load_or_create_secret_key(settings)),
        guard=NetGuard(settings.webhook_allow_networks),
    )

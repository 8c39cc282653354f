"""Goal: a server brings its own database to head, and nobody else's."""

from pathlib import Path

import pytest

from app.core.errors import ConfigError
from app.db import schema
from app.services.gateway import require_schema
from tests.db.test_migrate import STATE
from tests.db.test_schema import execute
from tests.support.gateway import settings_for


async def test_embedded_mode_does_not_migrate_a_database_of_other_chains(db_url: str, tmp_path: Path) -> None:
    chains = tmp_path / "chains.yaml"
    chains.write_text('chains:\n  - {name: devnet, chain_id: 31337, rpc_url: "${NOT_SET}"}\n')
    settings = settings_for(db_url, "", chains_file=chains)
    await execute(db_url, STATE.format(chain_id=1, name="devnet"))
    await require_schema(settings)  # at head there is nothing to migrate: the chain stands still, and says why
    await schema.downgrade(db_url, "0002")
    with pytest.raises(ConfigError, match=r"chain 'devnet' is 1 in .* another gateway's"):
        await require_schema(settings)
    assert await schema.current(db_url) == "0002"
    await execute(db_url, "UPDATE chain_states SET chain_id = 31337")
    await require_schema(settings)
    assert await schema.check(db_url) == ()

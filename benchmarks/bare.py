"""The yardstick of `benchmarks.payments`: a FastAPI handler that does one asyncpg INSERT and nothing else.

python -m benchmarks.bare PORT POSTGRES_URL
"""

import json
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import uvicorn
from fastapi import FastAPI, Request

CONNECTIONS = 16


def bare_app(url: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
            await pool.execute("CREATE TABLE IF NOT EXISTS bare (id text PRIMARY KEY, body json NOT NULL)")
            app.state.pool = pool
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/payments", status_code=201)
    async def create(request: Request) -> dict[str, str]:
        body = await request.json()
        payment_id = secrets.token_hex(16)
        await app.state.pool.execute("INSERT INTO bare (id, body) VALUES ($1, $2)", payment_id, json.dumps(body))
        return {"id": payment_id}

    return app


if __name__ == "__main__":
    uvicorn.run(bare_app(sys.argv[2]), port=int(sys.argv[1]), access_log=False, log_level="warning")

# Paywatch for any role: the API (default), `python -m app.workers`, `python migrate.py`, `paywatch`.
# Packages come from deploy/requirements.lock by their hashes. Nothing is written outside /app/data (embedded mode) and /tmp.

FROM python:3.12-slim-trixie AS build
WORKDIR /app
# Some of hdwallet's packages have no wheel, and a slim image has no compiler; the second stage gets none.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.8
COPY deploy/requirements.lock deploy/
RUN uv venv --quiet .venv && uv pip sync --quiet --no-cache --require-hashes deploy/requirements.lock
COPY alembic.ini chains.yaml migrate.py server.py ./
COPY app app
COPY contracts/artifacts contracts/artifacts
COPY deploy/first_start.py deploy/
COPY migrations migrations
RUN printf '#!/bin/sh\nexec python -m app.cli "$@"\n' > .venv/bin/paywatch && chmod +x .venv/bin/paywatch \
 && .venv/bin/python -m compileall -q app migrations server.py migrate.py .venv/lib

FROM python:3.12-slim-trixie
# pg_dump, pg_restore and psql are what `paywatch backup` and `restore` run.
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql-client && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --home-dir /app --shell /usr/sbin/nologin paywatch && install -d -o paywatch /app/data
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/app/.venv/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PAYWATCH_HOST=0.0.0.0
USER paywatch
VOLUME /app/data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
CMD ["python", "server.py"]

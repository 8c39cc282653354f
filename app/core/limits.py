"""Every limit, timeout and batch size in one place. Units stand last in the names; each line says why that number."""

from typing import Final

# Talking to nodes
RPC_TIMEOUT_S: Final = 10.0  # a full mainnet block with receipts takes a slow public node 3 to 5 s
RPC_ATTEMPTS: Final = 3  # two more tries outlast a restarting proxy; more would eat the step's own time
RPC_BACKOFF_MIN_S: Final = 0.2  # shorter only hits the same rate-limit window again
RPC_BACKOFF_MAX_S: Final = 5.0  # longer than half a step is better spent on another endpoint
RPC_BATCH_CALLS: Final = 50  # public nodes commonly refuse JSON-RPC batches of more than 100

# Scanning
LINKED_RUN_BLOCKS: Final = 16  # unfinalized blocks a step links one by one: short enough to redo when the head forks
HEADER_WINDOW_BLOCKS: Final = 1_024  # headers kept to find a common ancestor: over ten times mainnet's finality
STEP_TIMEOUT_S: Final = 12.0  # one scanner step; under the job's timeout, so the step ends itself and is logged
LISTEN_BUDGET_S: Final = 8.0  # a listener job starts no further step after this long, so that chains share workers
LISTENER_JOB_TIMEOUT_S: Final = 15  # arq keeps a dead worker's job for this and 10 s more: taken over within 30 s
IDLE_GRACE_S: Final = 30  # a chain with no block newer than this past `expires_at` no longer holds a payment open
HEAD_SEEN_EVERY_S: Final = 10  # an idle chain tells that its head was read; lag is judged by it

# Webhooks
WEBHOOK_TIMEOUT_S: Final = 10.0  # a receiver that needs longer should answer first and work later
WEBHOOK_CONNECT_TIMEOUT_S: Final = 5.0  # a host that drops packets must not take the whole attempt's time
WEBHOOK_ANSWER_TIMEOUT_S: Final = 2.0  # its body is for people to read; the status has decided by then
WEBHOOK_JOB_TIMEOUT_S: Final = 18  # of the webhook role's jobs, which wake and tidy; and arq's 10 s: under 30 s
WEBHOOK_LEASE_S: Final = 25.0  # how long a claimed delivery is one worker's: over attempt and record, under 30 s
WEBHOOK_CLAIM_ROWS: Final = 50  # deliveries claimed at once: bounds one transaction
WEBHOOK_ENDPOINT_CONCURRENCY: Final = 4  # one slow receiver holds this many sockets and never the queue
WEBHOOK_RESPONSE_BYTES: Final = 4096  # read of an answer, enough to see its error; the rest is never downloaded
WEBHOOK_RETRY_DELAYS_S: Final = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)  # DESIGN section 7
WEBHOOK_RETRY_JITTER_PERCENT: Final = 20  # spreads the retries of a receiver's outage, both ways
WEBHOOK_RETRY_AFTER_MAX_S: Final = 86_400  # what a receiver may ask for: the longest pause that we make ourselves
WEBHOOK_BREAKER_FAILURES: Final = 10  # in a row, then a receiver is only probed; fewer would be one bad deploy
WEBHOOK_PROBE_MIN_S: Final = 1.0  # after the first failure of a probe; it doubles, so no pause outlasts the outage
WEBHOOK_PROBE_MAX_S: Final = 30.0  # a receiver that is back is noticed within this
WEBHOOK_GIVE_UP_S: Final = 432_000  # five days without success: longer than any delivery's own schedule
WEBHOOK_SILENCE_S: Final = 129_600  # a day and a half without a failure is over every retry's pause: it fails anew
WEBHOOK_OLD_SECRET_S: Final = 86_400  # a day to roll a new secret out, as the design says
WEBHOOK_OLD_SECRETS: Final = 4  # of one endpoint at once: each is one more signature in every request
WEBHOOK_REPLAY_ROWS: Final = 1_000  # one call of the bulk replay: a transaction of well under a second

# What a request may hold (DESIGN section 6)
BODY_BYTES: Final = 65_536  # a payment is under 6 KiB at its largest; read no more of a stranger's body
METADATA_BYTES: Final = 4096  # stored with the payment and sent in each of its webhooks
METADATA_LEVELS: Final = 32  # of objects and arrays; pydantic, which writes it into answers, ends at 255
ORDER_ID_CHARS: Final = 128  # an indexed column
DESCRIPTION_CHARS: Final = 500  # shown on the checkout page
IDEMPOTENCY_KEY_CHARS: Final = 255  # what other payment APIs allow
IDEMPOTENCY_KEEP_S: Final = 172_800  # two days: longer than any client's own retries
EXPIRES_IN_MIN_S: Final = 60  # less than a few blocks could never be paid in time
EXPIRES_IN_MAX_S: Final = 2_592_000  # 30 days: open payments are re-read in every step
EXPIRES_IN_DEFAULT_S: Final = 3_600  # an hour, as the design says
STREAMS_PER_ADDRESS: Final = 10  # open at once; a browser opens six to one host
STREAMS_MAX: Final = 1_000  # of one process: a file descriptor and a few KB each
STREAM_POLL_S: Final = 0.5  # one query for all streams of a process; the longest that a change waits to be told
STREAM_HEARTBEAT_S: Final = 15.0  # proxies commonly close what was silent for 30 to 60 s
STREAM_LIFE_S: Final = 900.0  # a revoked key, and a client that has gone without a word, hold a stream for no longer
STREAM_RETRY_S: Final = 1  # what a client waits before it connects again
ACCEPT_OPTIONS: Final = 20  # ways to pay one payment: a checkout page shows no more, and each is quoted and watched
CURRENCY_PATTERN: Final = r"^[A-Za-z0-9]{2,10}$"  # of fiat money or anything else that rates are told in
CONFIRMATION_TIERS: Final = 20  # of a merchant; each payment reads them
FORWARDED_HOPS: Final = 10  # proxies in a row that X-Forwarded-For is read through
RATE_LIMIT_TIMEOUT_S: Final = 1.0  # Redis answers in a millisecond; a request is not held up for longer
RATE_LIMIT_REST_S: Final = 10.0  # after a failure Redis is not asked for so long: requests pass without a wait
PAGE_DEFAULT: Final = 20  # rows of a list when `limit` is absent
PAGE_MAX: Final = 100  # rows of a list at most: a page with its transactions stays under a megabyte

# Money
MAX_UNITS: Final = 2**256 - 1  # what an EVM word can hold
AMOUNT_CHARS: Final = 160  # 78 digits, a dot and 77 decimals fit; nothing longer is worth parsing

# Rates
RATE_TIMEOUT_S: Final = 3.0  # one question to one source; a storefront waits while they are tried in turn
RATE_NODES: Final = 2  # endpoints of a chain that are asked for a price feed before the next source is
RATE_ANSWER_BYTES: Final = 262_144  # of an HTTP source: a list of all of an exchange's rates is under 100 KB
RATE_REUSED_PART: Final = 10  # a rate is used again for this part of its `max_age`: what is quoted is nearly as fresh
RATE_REUSED_MAX_S: Final = 15.0  # and for no longer: a feed with an hour's heartbeat may have been updated since
RATE_DIGITS: Final = 78  # before the point of a rate, or of zeros after it: more is no price

# Process
RECURSION_LEVELS: Final = 1_000  # Python's own default; what is nested deeper is an attack
SHUTDOWN_S: Final = 8.0  # the process exits within 10 s of SIGTERM; this leaves 2 for what does not listen

# Database
DB_POOL_SIZE: Final = 10  # connections of one process that stay open
DB_POOL_OVERFLOW: Final = 10  # and as many more in a burst; PostgreSQL allows 100 in all by default
DB_POOL_TIMEOUT_S: Final = 10.0  # a request that gets no connection by then is answered 503
DB_CONNECT_TIMEOUT_S: Final = 5.0  # a database that takes longer is down
DB_COMMAND_TIMEOUT_S: Final = 10.0  # under a step's time; no statement of ours scans for longer
SQLITE_BUSY_TIMEOUT_S: Final = 10.0  # writers wait for each other; one holds the lock for milliseconds
SQLITE_VARIABLES: Final = 30_000  # SQLite takes 32,766 in one statement

# Rows of one go
VERIFY_TRANSFERS: Final = 200  # receipts read again in one step
KEYS_PER_MERCHANT: Final = 100  # that work; more is a loop that makes keys
KEY_NAME_CHARS: Final = 100  # a line of a table
MERCHANT_NAME_CHARS: Final = 100
LAST_USED_EVERY_S: Final = 60.0  # a last use is told to the minute: a write for each request costs more
ENDPOINTS_PER_MERCHANT: Final = 100  # each event is delivered to all of them
CONFIRMATIONS_MAX: Final = 10_000  # a day of a fast chain; more is a typing error
URL_CHARS: Final = 2_000  # what browsers and proxies agree on

# Sweeping
SWEEP_ITEM_GAS: Final = 300_000  # of one address in a batch: the dearest real tokens take 200,000
SWEEP_BUMP_PERCENT: Final = 13  # more on a replacement: nodes ask for 10, and 12.5 is one full block's rise
SWEEP_TX_GAS: Final = 16_777_216  # no transaction may have more (EIP-7825)
SWEEP_GAS_PERCENT: Final = 125  # of an estimate: what a token or a contract wallet does may cost more a block later
SWEEP_BATCH_ADDRESSES: Final = 200  # of one collecting transaction: 75,000 gas each still fit into SWEEP_TX_GAS
SWEEP_CANDIDATES: Final = 500  # transfers that a round looks at: ten HTTP requests; the next round takes the next ones
SWEEP_PENDING: Final = 12  # of the gas account at once: nodes keep 16 transactions of an account, some fewer
SWEEP_LIVE: Final = 300  # sweeps of a chain that are followed at once: six HTTP requests for their receipts
SWEEP_ROUND_JOBS: Final = 50  # transactions signed in one round: bounds what a round's plan has to estimate
SWEEP_STUCK_S: Final = 120.0  # unmined for so long is replaced at the latest: ten blocks of the slowest chain
SWEEP_STUCK_POLLS: Final = 30  # or for so many poll intervals, which follow the chain's blocks
SWEEP_STUCK_ROUNDS: Final = 3  # and so many rounds: one that is late is no reason
SWEEP_REBROADCAST_S: Final = 30.0  # pools forget; the same bytes again cost nothing
SWEEP_ATTEMPTS: Final = 12  # of one nonce: 1.13 to the eleventh is nearly four times the first price
SWEEP_RETRY_MIN_S: Final = 300.0  # an address that could not be swept is tried again, doubling
SWEEP_RETRY_MAX_S: Final = 86_400.0  # a blacklisted one costs gas once a day at most
SWEEP_RESERVE_GAS: Final = 1_000_000  # a gas account that cannot pay for so much is low: two contracts and a batch
SWEEP_TELL_EVERY_S: Final = 600.0  # what keeps a round waiting is told so often, and when it changes
HEALTH_NAMES: Final = 5  # sweeps that /health names one by one
SWEEP_PROBE_EVERY_S: Final = 3_600.0  # a chain without EIP-7702 is asked again: it may have forked
SWEEP_ROUND_TIMEOUT_S: Final = 12.0  # one round; under its job's timeout, so the round ends itself and is logged
SWEEP_PLAN_BUDGET_S: Final = 4.0  # estimates are asked one by one: after so long the round signs what it has planned
SWEEP_SIGN_BUDGET_S: Final = 6.0  # a round signs nothing new after this long
SWEEPER_JOB_TIMEOUT_S: Final = 15  # and 10 s of arq's: a dead worker's round is taken over within 30 s

# Strangers' URLs
DNS_TIMEOUT_S: Final = 2.0  # a name that takes longer is not worth an API call's wait; deliveries ask again
DNS_THREADS: Final = 200  # lookups under way: twice WEBHOOK_CONNECTIONS, as a dead name's outlasts its attempt
DIAL_ADDRESSES: Final = 3  # of one host, tried in turn within the attempt's time
WEBHOOK_CONNECTIONS: Final = 100  # open at once in one process, so also its deliveries under way
WEBHOOK_KEEPALIVE_CONNECTIONS: Final = 20  # kept for the next event

# Redis and jobs
REDIS_CONNECT_TIMEOUT_S: Final = 2.0  # on the same network it takes a millisecond
REDIS_TIMEOUT_S: Final = 5.0  # one command
REDIS_HEALTH_CHECK_S: Final = 15  # an idle connection is tried before it is used again
JOB_EXPIRES_S: Final = 60  # a wake-up that nobody took by then has been repeated many times over
JOB_POLL_S: Final = 0.05  # arq's own default of half a second would be added to every wake-up
JOBS_AT_ONCE: Final = 20  # of one role in one process
HOUSEKEEPING_EVERY_S: Final = 3_600.0  # nothing that it deletes is in anybody's way
JOB_TRIES: Final = 5  # a job that dies with its worker is taken up again; the next wake-up does it anyway
HEARTBEAT_S: Final = 5  # a worker's sign of life
WEBHOOK_TICK_S: Final = 2.0  # finds what a lost wake-up left, and retries that have become due
PREPARE_EVERY_S: Final = 15.0  # how often a chain that failed its check is checked again
WORKER_RESTART_S: Final = 1.0  # between two tries to reach Redis again
WORKER_STOP_S: Final = 5.0  # running jobs may finish for this long after SIGTERM, then they are cancelled
OTHER_NODES_S: Final = 2.0  # a chain's further endpoints answer within this or are checked when they are needed
STARTUP_CHECK_S: Final = 5.0  # the server does not wait longer for its nodes; workers check them anyway
EMBEDDED_REDIS_START_S: Final = 5.0  # it takes a tenth of a second
EMBEDDED_REDIS_STOP_S: Final = 2.0  # it keeps nothing on disk, so it has nothing to save
LAGGING_AFTER_S: Final = 60.0  # a chain whose cursor is older than this, and than a few polls, is lagging
LAGGING_POLLS: Final = 5

# Many nodes
LOG_RANGE_BLOCKS: Final = 10_000  # the widest eth_getLogs that is ever asked; each endpoint learns its own limit
BREAKER_MIN_S: Final = 2.0  # after one failed step an endpoint rests for half a block
BREAKER_MAX_S: Final = 60.0  # an endpoint that stays away is still tried once a minute
BALANCES_PER_CALL: Final = 500  # of one eth_call: 16 KB of answer, under the 24 KB of a contract (EIP-170)
ROTATION_EVERY_S: Final = 60.0  # how often the next addresses without an open payment have their balances read
ROTATION_ADDRESSES: Final = 500  # at least so many at a turn: 720,000 a day
ROTATION_TURNS: Final = 1_000  # all addresses come round within so many turns, less than a day
RECONCILE_ADDRESSES: Final = 2_000  # compared at a time: the newest, four calls for each asset
BACKUP_EVERY_S: Final = 60.0  # between two backup passes of a chain; each reads all final ranges that are left
RECONCILE_EVERY_S: Final = 3_600.0  # between two comparisons of balances
WS_BACKOFF_MIN_S: Final = 1.0  # a lost head subscription is tried again; polling goes on meanwhile
WS_BACKOFF_MAX_S: Final = 60.0
RETRY_AFTER_MAX_S: Final = 600.0  # what a node may ask for; more would be an outage by politeness

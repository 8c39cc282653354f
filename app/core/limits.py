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
MAX_HEAD_AGE_S: Final = 180.0  # of the newest block of a public chain: fifteen of Ethereum's, the slowest of them
HEAD_OLD_S: Final = 30.0  # a head this old is compared with the other nodes'; no more than IDLE_GRACE_S
HEAD_COMPARE_EVERY_S: Final = 20.0  # and so often; under IDLE_GRACE_S, so nothing expires by an older comparison
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
WEBHOOK_END_ROWS: Final = 1_000  # made dead in one transaction: others wait for its locks, a tenth of a second

# What a request may hold (DESIGN section 6)
BODY_BYTES: Final = 65_536  # a payment is under 6 KiB at its largest; read no more of a stranger's body
METADATA_BYTES: Final = 4096  # stored with the payment and sent in each of its webhooks
METADATA_LEVELS: Final = 32  # of objects and arrays; pydantic, which writes it into answers, ends at 255
ORDER_ID_CHARS: Final = 128  # an indexed column
DESCRIPTION_CHARS: Final = 500  # shown on the checkout page
IDEMPOTENCY_KEY_CHARS: Final = 255  # what other payment APIs allow
IDEMPOTENCY_KEEP_S: Final = 172_800  # two days: longer than any client's own retries
RACE_TRIES: Final = 2  # the second for a key or an order that was given up between refusing a request and looking why
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
RECURSION_LEVELS: Final = 3_000  # a trace of the EVM's 1,024 frames takes two each; what is nested deeper is an attack
SHUTDOWN_S: Final = 8.0  # the process exits within 10 s of SIGTERM; this leaves 2 for what does not listen
WATCHED_AGE_S: Final = 1.0  # a payment may be created for so long after its chain was halted; its address stays watched
INDEX_BLOCK: Final = 32  # HD indexes that a process takes at a time; what it has left when it ends is a gap
GC_THRESHOLDS: Final = (20_000, 20, 50)  # objects, and generations: Python's 700 looks for garbage in every request

# Database
DUMP_TIMEOUT_S: Final = 21_600.0  # a backup or restore; six hours are some hundred gigabytes
RESTORE_LEAVING_S: Final = 5.0  # what a process that was just stopped has left open on the server ends within this
RESTORE_LOOK_S: Final = 0.1
RESTORE_INDEX_GAP: Final = 100_000  # HD indexes skipped after a restore: more than were given out since the backup
RESTORE_SKIP_MAX: Final = 100_000_000  # a twentieth of all indexes that there are
DB_POOL_SIZE: Final = 20  # connections of one process that stay open; PostgreSQL allows 100 in all by default
DB_POOL_OVERFLOW: Final = 0  # a connection made for a burst costs more than the request that wanted it
DB_ASIDE_POOL_SIZE: Final = 3  # beside those: readiness, health and metrics tell that they are all in use
DB_POOL_TIMEOUT_S: Final = 10.0  # a request that gets no connection by then is answered 503
DB_CONNECT_TIMEOUT_S: Final = 5.0  # a database that takes longer is down
DB_COMMAND_TIMEOUT_S: Final = 10.0  # under a step's time; no statement of ours scans for longer
SQLITE_BUSY_TIMEOUT_S: Final = 10.0  # writers wait for each other; one holds the lock for milliseconds
SQLITE_WAL_RETRY_S: Final = 0.02  # between tries to put a new file into WAL mode; who else does it needs a millisecond
SQLITE_VARIABLES: Final = 30_000  # SQLite takes 32,766 in one statement

# Rows of one go
DECIDE_PAYMENTS: Final = 1_000  # that a step expires, and as many that it takes on: 0.8 ms each on PostgreSQL
PAYMENT_TRANSFERS: Final = 100  # of one asset that count for a payment: nobody pays in more parts, and dust is cheap
VERIFY_TRANSFERS: Final = 200  # receipts read again in one step; the next one goes on with those after them
KEYS_PER_MERCHANT: Final = 100  # that work; more is a loop that makes keys
KEY_NAME_CHARS: Final = 100  # a line of a table
MERCHANT_NAME_CHARS: Final = 100
LAST_USED_EVERY_S: Final = 60.0  # a last use is told to the minute: a write for each request costs more
ENDPOINTS_PER_MERCHANT: Final = 100  # each event is delivered to all of them
CONFIRMATIONS_MAX: Final = 10_000  # a day of a fast chain; more is a typing error
URL_CHARS: Final = 2_000  # what browsers and proxies agree on

# Operators
REASON_CHARS: Final = 300  # of a pause, a halt or a hand-made settlement: a sentence that /health can show
OPERATOR_CHARS: Final = 100  # a login name
KEY_GRACE_S: Final = 3_600  # an hour in which both keys work: the new one may be lost before anybody has seen it
KEY_GRACE_MAX_S: Final = 2_592_000  # 30 days in which a rotated key still works; longer is no rotation
EXPORT_ROWS: Final = 500  # events of one page: a few megabytes, however many there are

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
HOUSEKEEPING_EVERY_S: Final = 60.0  # nothing that it deletes is in anybody's way; a turn keeps up with a busy minute
HOUSEKEEPING_S: Final = 5.0  # of one turn, whose last statement may take as long as any and still be in its job's time
HOUSEKEEPING_ROWS: Final = 1_000  # deleted in one transaction: an answer is some KB, and SQLite has one writer
BATCH_PAUSE_S: Final = 0.1  # between two of many transactions in a row, in which SQLite's other writers get on
JOB_TRIES: Final = 5  # a job that dies with its worker is taken up again; the next wake-up does it anyway
HEARTBEAT_S: Final = 5  # a worker's sign of life
HEARTBEAT_EXPIRE_S: Final = 20  # a loaded machine may miss two of them; a killed worker is known for dead by then
TASK_LATE_S: Final = 45.0  # since a task was done: over the 25 s in which a killed worker's job is taken over
TASK_LATE_ROUNDS: Final = 3  # and so many of its own intervals: one that is put off is no reason
WAKE_UP_TIMEOUT_S: Final = 1.0  # of one that a request waits for: Redis answers in a millisecond
WAKE_UP_REST_S: Final = 10.0  # after one that failed no request asks for so long: senders look every WEBHOOK_TICK_S
WEBHOOK_TICK_S: Final = 2.0  # finds what a lost wake-up left, and retries that have become due
SPARE_EVERY_S: Final = 15.0  # an endpoint that no step uses is asked so often: it is known before it is needed
PREPARE_EVERY_S: Final = 15.0  # how often a chain that failed its check is checked again
WORKER_RESTART_S: Final = 1.0  # between two tries to reach Redis again
WORKER_STOP_S: Final = 5.0  # running jobs may finish for this long after SIGTERM, then they are cancelled
OTHER_NODES_S: Final = 2.0  # a chain's further endpoints answer within this or are checked when they are needed
STARTUP_CHECK_S: Final = 5.0  # the server does not wait longer for its nodes; workers check them anyway
EMBEDDED_REDIS_START_S: Final = 5.0  # it takes a tenth of a second
EMBEDDED_REDIS_STOP_S: Final = 2.0  # it keeps nothing on disk, so it has nothing to save
LAGGING_AFTER_S: Final = 30.0  # a chain whose cursor is older than this, and than a few polls, is lagging
LAGGING_POLLS: Final = 5

# Metrics
NEAR_TIP_BLOCKS: Final = 64  # what is found deeper under the node's head is caught up with: not how fast we see
LOOP_STUCK_S: Final = 30.0  # a loop that was held up so long is not coming back by itself
LOOP_TICK_S: Final = 0.25  # how often the event loop's lag is measured: four cheap wake-ups a second
TOLD_KEEP_S: Final = 1.0  # health and metrics, which anybody may ask for, are read once a second at most
METRICS_READ_S: Final = 2.5  # for each part of a scrape, three follow the first: Prometheus gives one 10 s by default

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

# Vitals and the doctor
VITALS_TICK_S: Final = 1.0  # how often a process measures how late its event loop is
VITALS_EXPIRE_S: Final = 30  # what a process tells of itself ends by itself: six heartbeats
DOCTOR_CHECK_S: Final = 30.0  # one check; a node that hangs takes half of it
DOCTOR_NODE_S: Final = 15.0  # all questions to one endpoint: one call may hang for RPC_TIMEOUT_S
DOCTOR_LOCK_WAIT_S: Final = 3.0  # for SQLite's one writer, which is done in milliseconds
DOCTOR_TRANSACTION_S: Final = 30.0  # no transaction of ours lasts longer than a step; a fault is told in a minute
DOCTOR_QUERY_S: Final = 5.0  # half of what our own statements may take
DOCTOR_STATEMENT_MS: Final = 500.0  # on average, by pg_stat_statements: ours take a few
DOCTOR_STATEMENT_CALLS: Final = 100  # of such a statement: one migration or backup is no habit
DOCTOR_PAYMENTS: Final = 500  # newest ones whose amounts are added up, and as many open ones
DOCTOR_ROWS: Final = 20  # orphan rows and the like that are looked for, and told: the first few say enough
DOCTOR_PROCESSES: Final = 1_000  # whose vitals are read: one round trip each
DOCTOR_HEADERS: Final = 5_000  # of a chain: what is kept, and more than finality lies below it
DOCTOR_QUEUE_JOBS: Final = 1_000  # that wait: each chain has one of a kind, so it is a role without a worker
DOCTOR_QUEUE_S: Final = 45.0  # a job is taken within milliseconds, and a killed worker's within 30 s
DOCTOR_DUE_S: Final = 45.0  # a webhook is sent within WEBHOOK_TICK_S, a killed sender's within 30 s
DOCTOR_DEAD_S: Final = 604_800.0  # a week: older dead webhooks are history, told as a warning
DOCTOR_LATENCY_S: Final = 2.0  # of one small call: a step makes a handful
DOCTOR_NODE_LAG_S: Final = 30.0  # between the newest blocks of two endpoints: two of Ethereum's
DOCTOR_HEAD_AGE_S: Final = 600.0  # of the newest block: no public chain rests for so long
DOCTOR_BLOCK_AHEAD_S: Final = 15.0  # a block's time may be this far ahead of a right clock (geth refuses more)
DOCTOR_BLOCK_AGE_S: Final = 60.0  # of the newest block of a chain that never rests: five of Ethereum's, the slowest
DOCTOR_CLOCK_S: Final = 5.0  # between this clock and the database's or Redis'; signatures of webhooks allow 300
DOCTOR_LOOP_LAG_S: Final = 1.0  # an event loop that is later than this answers nobody meanwhile
DOCTOR_RSS_BYTES: Final = 1_610_612_736  # 1.5 GiB: a server or worker of ours needs a tenth
DOCTOR_DISK_FULL_BYTES: Final = 33_554_432  # 32 MiB: SQLite's log alone grows to some MiB under load
DOCTOR_DISK_LOW_BYTES: Final = 268_435_456  # 256 MiB: to be told before it is full
DOCTOR_BACKUP_BLOCKS: Final = 10_000  # final and not read again: some 40 minutes of the fastest chain's
DOCTOR_SWEEP_ROUND_S: Final = 45.0  # since the sweeper looked at the gas account; or five of its intervals
DOCTOR_SWEEP_FAILURES: Final = 2  # of one address whose money waits: once may be a fault that is gone
DOCTOR_LOG_BYTES: Final = 5_242_880  # of a log file's end that goes into a bundle
DOCTOR_EVENTS: Final = 200  # of the last ones, whose types go into a bundle
MOCK_STEP_S: Final = 60.0  # of one step of a mock payment: a loaded machine needs a few seconds
MOCK_BLOCKS: Final = 200  # mined on a devnet whose blocks nobody else mines: more than its confirmations

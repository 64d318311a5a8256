-- The timeline and its spine. Every batch of the ClickHouse writer is one insert into each table, of one partition:
-- `part` is the month (yyyymm, UTC) of the batch's first recorded_at, because an insert into two partitions would not
-- be atomic. The window makes insert_deduplication_token work on tables without replication. The offset of a batch is
-- committed to Kafka once it is inserted, so that a power cut must not take the rows away again: hence fsync (merged
-- parts need none: the ones that they were made of stay for eight minutes). ledger_offset has an index for the writer,
-- which looks for rows from an offset on when it takes a partition over.
--
-- A page reads single rows out of granules: with 2,048 rows each instead of 8,192 the first page of a workspace of 5
-- million events takes a third of the time, and the files grow by 1.3 %.

CREATE TABLE IF NOT EXISTS events
(
    part             UInt32 CODEC(ZSTD(1)),
    workspace        FixedString(16) CODEC(ZSTD(1)),
    id               FixedString(16) CODEC(NONE),
    kind             UInt8 CODEC(ZSTD(1)),
    occurred_at      DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    recorded_at      DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    action           LowCardinality(String),
    action_category  LowCardinality(String),
    actor_id         String CODEC(ZSTD(1)),
    actor_name       String CODEC(ZSTD(1)),
    actor_type       LowCardinality(String),
    resource         LowCardinality(String),
    resource_id      String CODEC(ZSTD(1)),
    resource_name    String CODEC(ZSTD(1)),
    session_id       String CODEC(ZSTD(1)),
    tenant_id        String CODEC(ZSTD(1)),
    ip_address       String CODEC(ZSTD(1)),
    user_agent       String CODEC(ZSTD(1)),
    target_types     Array(LowCardinality(String)),
    target_ids       Array(String) CODEC(ZSTD(1)),
    flags            Array(LowCardinality(String)),
    metadata         Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    body             String CODEC(ZSTD(3)),
    chain            FixedString(16) CODEC(ZSTD(1)),
    sequence         UInt64 CODEC(Delta(8), ZSTD(1)),
    seed             FixedString(16) CODEC(NONE),
    disclosure       String CODEC(ZSTD(1)),
    input_generation UInt16 CODEC(ZSTD(1)),
    input_partition  UInt16 CODEC(ZSTD(1)),
    input_offset     UInt64 CODEC(DoubleDelta, ZSTD(1)),
    ledger_partition UInt16 CODEC(ZSTD(1)),
    ledger_offset    UInt64 CODEC(DoubleDelta, ZSTD(1)),

    INDEX recorded_at_minmax recorded_at TYPE minmax GRANULARITY 1,
    INDEX occurred_at_minmax occurred_at TYPE minmax GRANULARITY 1,
    INDEX sequence_minmax sequence TYPE minmax GRANULARITY 1,
    INDEX ledger_offset_minmax ledger_offset TYPE minmax GRANULARITY 1,
    INDEX id_bloom id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX actor_id_bloom actor_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX resource_id_bloom resource_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX session_id_bloom session_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX metadata_keys_bloom mapKeys(metadata) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX metadata_values_bloom mapValues(metadata) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY part
ORDER BY (workspace, occurred_at, id)
SETTINGS index_granularity = 2048, non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1,
    fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS leaves
(
    part             UInt32 CODEC(ZSTD(1)),
    workspace        FixedString(16) CODEC(ZSTD(1)),
    chain            FixedString(16) CODEC(ZSTD(1)),
    sequence         UInt64 CODEC(Delta(8), ZSTD(1)),
    leaf_hash        FixedString(32) CODEC(NONE),
    node             String CODEC(NONE),
    id               FixedString(16) CODEC(NONE),
    kind             UInt8 CODEC(ZSTD(1)),
    recorded_at      DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    input_generation UInt16 CODEC(ZSTD(1)),
    input_partition  UInt16 CODEC(ZSTD(1)),
    input_offset     UInt64 CODEC(DoubleDelta, ZSTD(1)),
    ledger_partition UInt16 CODEC(ZSTD(1)),
    ledger_offset    UInt64 CODEC(DoubleDelta, ZSTD(1)),

    INDEX ledger_offset_minmax ledger_offset TYPE minmax GRANULARITY 1,
    INDEX id_bloom id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY part
ORDER BY (chain, sequence)
SETTINGS index_granularity = 2048, non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1,
    fsync_after_insert = 1, fsync_part_directory = 1;

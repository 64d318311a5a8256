-- The root log and its signed checkpoints, as the checkpoints topic has them. Rows may be there twice where a writer was
-- killed: readers take one of each key. hash and node make every tile and proof of the root log.

CREATE TABLE IF NOT EXISTS root_log
(
    entry_index UInt64 CODEC(Delta(8), ZSTD(1)),
    hash        FixedString(32) CODEC(NONE),
    node        String CODEC(NONE),
    type        LowCardinality(String),
    time        DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
    entry       String CODEC(ZSTD(3))
)
ENGINE = MergeTree
ORDER BY entry_index
SETTINGS index_granularity = 1024, non_replicated_deduplication_window = 10000, fsync_after_insert = 1,
    fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS checkpoints
(
    size         UInt64 CODEC(Delta(8), ZSTD(1)),
    root         FixedString(32) CODEC(NONE),
    note         String CODEC(ZSTD(3)),
    witnesses    UInt16 CODEC(ZSTD(1)),
    quorum       Bool CODEC(ZSTD(1)),
    published_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1))
)
ENGINE = MergeTree
ORDER BY (size, witnesses)
SETTINGS index_granularity = 1024, non_replicated_deduplication_window = 10000, fsync_after_insert = 1,
    fsync_part_directory = 1;

-- What a chain's id and its genesis are made of. The rows of a chain stand together, so that this takes no room.
ALTER TABLE leaves
    ADD COLUMN IF NOT EXISTS incarnation FixedString(16) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS lane UInt32 CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS lanes UInt32 CODEC(ZSTD(1));

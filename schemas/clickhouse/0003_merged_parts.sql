-- A part that is made of others, by a merge or a mutation, is synced before it takes their place, for they are removed soon after: old_parts_lifetime
-- keeps them for eight minutes with ClickHouse's own default, for none with that of the embedded library. Else a power cut could take away rows that
-- were synced at their insert.

ALTER TABLE events MODIFY SETTING min_rows_to_fsync_after_merge = 1;

ALTER TABLE leaves MODIFY SETTING min_rows_to_fsync_after_merge = 1;

ALTER TABLE root_log MODIFY SETTING min_rows_to_fsync_after_merge = 1;

ALTER TABLE checkpoints MODIFY SETTING min_rows_to_fsync_after_merge = 1;

"""Writing a store: shards, their commit, compaction and deletion."""

"""Reading a store: snapshots, relations, and SQL that is locked down."""

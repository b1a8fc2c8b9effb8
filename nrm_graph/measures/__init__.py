"""``Measure``: exact answers for one input, to events, conditions and partitions."""

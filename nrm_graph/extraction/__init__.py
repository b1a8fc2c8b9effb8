"""From data to a store: inputs, targets and labels, batches, Ray, and what a store is told."""

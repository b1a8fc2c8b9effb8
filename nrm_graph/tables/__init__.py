"""Tables of edges and nodes out of a relevance pass, summed over units, rounded and pruned."""

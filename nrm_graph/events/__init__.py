"""Sets of neurons, their algebra, the text and the JSON that name them; frozen values, no torch."""

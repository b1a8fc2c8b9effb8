"""The linear maps that rules share out: of every operation, its matrix, never written out."""

"""Language models: loaded from folders without running their code, read as text."""

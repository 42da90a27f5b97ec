"""Running one claimed job: replay, steps, transactions, and what becomes of it."""

"""The protocol as a model in Promela, and what checks it."""

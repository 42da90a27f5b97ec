"""The same small plan of kills for pgqueue and for others: docs/chaos/peers.md."""

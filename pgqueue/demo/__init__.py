"""``pgqueue demo``: two stories and a storm. The bank credit and the order with its warehouse, each with the failure first; then
a small shop whose workers are killed several times a second, and whose ledger is checked line by line.

play.py tells it from the beginning to the end. shop.py is what an application looks like: begin there.
"""

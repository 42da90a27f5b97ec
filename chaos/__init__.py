"""What breaks pgqueue on purpose, and what knows how it should have behaved. Tools without tests: ``tests/`` uses them."""

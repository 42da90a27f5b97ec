"""Applications for the chaos suite to work on."""

"""The supervisor: forks, watches and kills. No threads, no database connection, no user code."""

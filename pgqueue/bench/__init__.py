"""``pgqueue bench``: measures this pgqueue on this server, in a database of its own.

Times mean something only beside other times of the same run; counts (statements, commits, WAL bytes per job) always do.
"""

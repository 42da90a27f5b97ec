"""The housekeeper: one process per supervisor that does for all its workers what none of them can do for itself. It sends their
heartbeats, gives back the jobs of dead workers, ticks schedules, moves due jobs, and wakes idle ones. It imports no user code."""

"""The agent of a host: what it waits for, what it does for each job, and what it answers."""

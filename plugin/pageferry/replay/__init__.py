"""A plan's inputs as a file: written where a job is, read wherever somebody wants to see the same plan again."""

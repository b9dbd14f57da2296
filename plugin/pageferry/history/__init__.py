"""What was done, for people to look back at: never a condition of doing it."""

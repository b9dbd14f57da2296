"""Hold and release: a job stands still until its memory has arrived, and nothing leaves it so."""

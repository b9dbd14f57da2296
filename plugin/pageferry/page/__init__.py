"""The page that says what became of a job's memory: one file of HTML, for whoever is to read it, wherever they are."""

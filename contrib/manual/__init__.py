"""Makes the manual pages, the sample of the settings and the shells' completion, from the program's own words.

`python -m manual FOLDER`, when a package is built. Nothing here is installed, and nothing is kept in the repository:
what a command or a setting is, is said once, in the code that reads it.
"""

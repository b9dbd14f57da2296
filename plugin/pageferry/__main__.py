"""`python -m pageferry` is the command `pageferry`."""

from pageferry.cli import main

main()

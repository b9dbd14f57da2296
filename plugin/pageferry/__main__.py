"""`python -m pageferry` is the command `pageferry`."""

from pageferry.cli.main import main

main()

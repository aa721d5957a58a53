"""`python -m studies.cli`: the command line."""

from studies.cli.main import main

main()

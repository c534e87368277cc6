"""`python -m persyn.cli`: the `persyn` command where its script is not on the path."""

from persyn.cli import main

main()

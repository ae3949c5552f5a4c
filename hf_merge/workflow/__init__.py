"""What the command line and Python both call: plan, search, build, report, evaluate."""

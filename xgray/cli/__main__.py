"""Run the command line with ``python -m xgray.cli``."""

from xgray.cli.main import main

main()

"""Runs the command line as `python -m hf_merge`."""

from hf_merge.cli import main


if __name__ == "__main__":
    main()

"""``python -m blockgraph``: the command line."""

from blockgraph.cli import main

if __name__ == "__main__":
    main()

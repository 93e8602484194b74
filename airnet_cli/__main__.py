"""`python -m airnet_cli`: the same as the `airnet` command."""

from airnet_cli.cli.app import main

if __name__ == "__main__":
    main()

"""``python -m llara_cli``: the same program as ``llara``."""

from llara_cli.app import main

if __name__ == "__main__":
    main()

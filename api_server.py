"""Starts the server from a checkout: `python api_server.py --help` lists the flags."""

import sys

try:
    from higgs_server.main import main
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed here. Run `make setup`, then `.venv/bin/python api_server.py`.")

if __name__ == "__main__":
    sys.exit(main())

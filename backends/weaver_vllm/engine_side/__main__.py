"""`python -m engine_side FD`: an engine that is asked over the socket FD, until that is closed."""

import sys

from .main import main

if __name__ == "__main__":  # processes that vLLM starts import this again, under another name
    main(int(sys.argv[1]))

"""``python -m itrd_nlp.cli``, which ``accelerate launch -m itrd_nlp.cli`` starts, too."""

import os
import sys

from itrd_nlp.cli.main import main

if __name__ == "__main__":
    code = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        if sys.stdout is not None:
            sys.stdout.flush()
        os._exit(code)  # a gloo process group may abort while Python tears down
    sys.exit(code)

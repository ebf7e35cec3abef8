"""``python -m itrd_nlp.cli``, also for ``accelerate launch -m itrd_nlp.cli``."""

import os
import sys

from itrd_nlp.cli.main import main

if __name__ == "__main__":
    code = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        if sys.stdout is not None:
            sys.stdout.flush()
        os._exit(code)  # a gloo process group may abort while Python shuts down
    sys.exit(code)

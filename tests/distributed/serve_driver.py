"""A service of local scorers in a process of its own: ``serve_driver.py SETTINGS_JSON``."""

import json
import logging
import signal
import sys

from xgray.config import Score, Serve
from xgray.distributed.serve import run_service
from xgray.errors import XgrayError

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_service(
            {name: Score.model_validate(score) for name, score in settings["scorers"].items()},
            Serve.model_validate(settings["serve"]),
        )
    except XgrayError as error:
        sys.exit(f"{type(error).__name__}: {error}")

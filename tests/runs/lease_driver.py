"""A driver that holds a run's lease until it is interrupted: ``lease_driver.py RUN [BEAT_SECONDS STALE_SECONDS]``."""

import sys
import time

from xgray.errors import BusyError
from xgray.runs import interrupts
from xgray.runs.lease import Lease
from xgray.runs.progress import Meter
from xgray.storage.folder import Folder

if __name__ == "__main__":
    interrupts.listen()
    meter = Meter()
    meter("generate/base", 3, 10)
    try:
        with Lease(Folder(sys.argv[1]), meter.progress, *map(float, sys.argv[2:])):
            print("held", flush=True)
            while True:
                time.sleep(0.1)
    except BusyError as error:
        print(error, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(interrupts.reason(), flush=True)
        sys.exit(1)

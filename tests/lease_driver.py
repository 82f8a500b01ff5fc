"""A driver that holds a run's lease until it is told to stop: ``lease_driver.py RUN [BEAT STALE]``, seconds."""

import sys
import time

from xgray import stop
from xgray.errors import BusyError
from xgray.lease import Lease
from xgray.meter import Meter
from xgray.storage import Folder

if __name__ == "__main__":
    stop.listen()
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
        print(stop.reason(), flush=True)
        sys.exit(1)

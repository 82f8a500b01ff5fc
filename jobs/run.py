"""The entrypoint of a Ray job: ``xgray run`` on the job's cluster, with a checkout as the working directory.

    ray job submit --working-dir . -- python -m jobs.run jobs/mgpt.yaml --runs s3://BUCKET/runs

The job may be submitted again at any time; finished stages are passed over. ``xgray submit`` does the same.
"""

import sys

from xgray.cli.main import main

if __name__ == "__main__":
    sys.argv[1:] = ["run", *sys.argv[1:], "--address", "auto"]
    main()

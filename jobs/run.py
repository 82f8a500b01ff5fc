"""The entrypoint of a Ray job: ``xgray run`` on the cluster that the job is on, with a checkout as working directory.

    ray job submit --working-dir . -- python -m jobs.run jobs/mgpt.yaml --runs s3://BUCKET/runs

It may be submitted again at any time: what is finished is passed over. ``xgray submit`` does the same.
"""

import sys

from xgray.cli.main import main

if __name__ == "__main__":
    sys.argv[1:] = ["run", *sys.argv[1:], "--address", "auto"]
    main()

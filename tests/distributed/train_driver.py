"""A program that trains a tiny model under a Ray of two cores: ``train_driver.py MODEL OUTPUT TRAIN_SECTION_JSON``."""

import json
import sys

from tests.train.tiny import PAIRS
from xgray.config import Model, Train
from xgray.storage.folder import Folder

if __name__ == "__main__":
    import ray

    from xgray.distributed.train import run_training

    model, output, section = sys.argv[1:]
    ray.init(num_cpus=2, include_dashboard=False, address="local", log_to_driver=False)
    result = run_training(
        Model(id=model), Train(**json.loads(section)), PAIRS, 0, Folder(output), reference_fingerprint="tiny"
    )
    print(json.dumps(vars(result)))

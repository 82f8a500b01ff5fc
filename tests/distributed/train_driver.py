"""Train a tiny model on a Ray of two cores: ``python -m tests.distributed.train_driver MODEL OUTPUT SECTION_JSON``."""

import json
import sys

import ray

from tests.train.tiny import PAIRS
from xgray.config import Model, Train
from xgray.distributed.train import run_training
from xgray.storage.folder import Folder

if __name__ == "__main__":
    model, output, section = sys.argv[1:]
    ray.init(num_cpus=2, include_dashboard=False, address="local", log_to_driver=False)
    run_training(Model(id=model), Train(**json.loads(section)), PAIRS, 0, Folder(output), reference_fingerprint="tiny")

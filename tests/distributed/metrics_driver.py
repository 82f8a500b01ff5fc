"""A program that counts blocks in an actor and progress in the driver, under a Ray that exports at ``PORT``."""

import sys

import ray

from xgray.distributed.metrics import count_block, show_progress

PART = {
    "stage": "score", "model": "base", "num_prompts": 4, "num_completions": 8, "num_tokens": 0, "num_errors": 3,
    "start_seconds": 0.0, "seconds": 2.0,
    "scorer_counts": {"num_requests": 9, "num_retries": 1, "quota_wait_seconds": 2.5},
}  # fmt: skip
BLOCKS = [
    PART,
    PART | {"seconds": 0.05},
    PART | {"stage": "generate", "num_tokens": 160, "start_seconds": 5.0, "num_errors": 0, "scorer_counts": {}},
]


@ray.remote
class Actor:
    def count(self):
        for part in BLOCKS:
            count_block("e", part)


if __name__ == "__main__":
    ray.init(address="local", num_cpus=1, include_dashboard=False, _metrics_export_port=int(sys.argv[1]))
    actor = Actor.remote()
    ray.get(actor.count.remote())
    show_progress("e", "train/dpo", 7, 60)
    show_progress("e", "report", 0, 1)
    print("counted", flush=True)
    sys.stdin.read()

r"""A Ray job that only evaluates: `gbcd evaluate` on a node with a GPU, which joins no workers.

ray job submit --entrypoint-num-gpus 1 --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/evaluate.py s3://bucket/ioi
"""

import sys

from gbcd.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])

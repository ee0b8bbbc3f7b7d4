r"""A Ray job that only evaluates: `gbcd evaluate` on the workers of the cluster, as a run.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/evaluate.py s3://bucket/ioi --workers 8
"""

import sys

from gbcd.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])

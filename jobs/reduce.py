"""A Ray job that only reduces: `gbcd reduce` beside the data, without workers.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/reduce.py s3://bucket/ioi
"""

import sys

from gbcd.cli import app

if __name__ == "__main__":
    app(["reduce", *sys.argv[1:]])

"""The entry point of a Ray job: `gbcd run` with the arguments it was given.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/run_study.py jobs/studies/ioi_gpt2.toml --out s3://bucket/ioi

The driver joins the cluster that the job runs on, its progress goes to the job's log, and its exit status is the job's.
Submitted again, it goes on where it was.
"""

import sys

from gbcd.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:]])

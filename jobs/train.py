"""`python -m jobs.train`: the same as `imgcls train`, for `ray job submit`."""

from imgcls.cli import run_job

if __name__ == "__main__":
    run_job("train")

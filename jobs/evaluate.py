"""`python -m jobs.evaluate`: the same as `imgcls evaluate`, for `ray job submit`."""

from imgcls.cli import run_job

if __name__ == "__main__":
    run_job("evaluate")

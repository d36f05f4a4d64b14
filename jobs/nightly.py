"""`python -m jobs.nightly`: the same as `imgcls nightly`, for `ray job submit`."""

from imgcls.cli import run_job

if __name__ == "__main__":
    run_job("nightly")

"""`python -m jobs.bench`: the same as `imgcls bench`, for `ray job submit`."""

from imgcls.cli import run_job

if __name__ == "__main__":
    run_job("bench")

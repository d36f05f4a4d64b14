"""`python -m jobs.promote`: the same as `imgcls promote`, for `ray job submit`."""

from imgcls.cli import run_job

if __name__ == "__main__":
    run_job("promote")

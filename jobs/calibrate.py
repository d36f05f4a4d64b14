"""`python -m jobs.calibrate`: the same as `imgcls calibrate`, for `ray job submit`."""

from imgcls.cli import run_job

if __name__ == "__main__":
    run_job("calibrate")

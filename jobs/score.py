"""`python -m jobs.score`: the same as `imgcls score`, for `ray job submit`."""

from imgcls.cli import run_job

if __name__ == "__main__":
    run_job("score")

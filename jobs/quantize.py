"""`python -m jobs.quantize`: the same as `imgcls quantize`, for `ray job submit`."""

from imgcls.cli import run_job

if __name__ == "__main__":
    run_job("quantize")

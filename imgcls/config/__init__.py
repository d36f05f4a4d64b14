"""One frozen dataclass per command: its fields are the flags, their docstrings the help.

In: nothing. Out: the config classes. Invariant: a flag, its default, its unit and its help are
read from here: parsers are built from these files, so `imgcls X` and `python -m jobs.X` cannot
differ. A field without a default is a required flag. No torch, no ray, no storage: `imgcls --help`
reads these files and little else.
"""

"""The stages, one module and one command each: each reads finished artifacts and writes its own.

In the order of the data: `preprocess`, `train`, `export`, `evaluate`, `promote`, `score`. `run`
calls them all, and asks a server for one prediction (`smoke_test`); `show` prints a model version.
To add one: see the docstring of `pipeline`.
"""

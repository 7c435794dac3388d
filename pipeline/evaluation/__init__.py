"""Evaluate a model version on labelled rows, and render the result; the stage `evaluate` uses it.

Read `metrics`, then `report`, which fills the pages in `templates/`.
"""

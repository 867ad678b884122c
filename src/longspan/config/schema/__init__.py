"""The values that each config key takes, as pydantic models: one class for each `_target_` that conf/ names.

Checking them imports no torch, so that a wrong value costs a second. `longspan.config.values.check_values` does it.
"""

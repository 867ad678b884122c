"""The command line and the config: composing, overriding, checking values, nearest names, errors."""

"""From a composed config to a finished run: checks, building, fitting, resuming, and the table at the end."""

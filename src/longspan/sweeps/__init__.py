"""Many runs, each a fresh process with a folder and devices of its own; a sweep that was killed goes on where it was.

Hydra's --multirun runs jobs in one process, where a job over several devices would start the whole sweep again in each
rank; here a job knows nothing of the others, and one that fails or runs out of memory takes none with it.
"""

"""The benchmark history of flash, for asv. `README.md` beside this package's folder says how to run it."""

"""The rows of docs/paper.md: how each result of the papers is measured here, and how it is shown."""

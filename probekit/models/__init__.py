"""Models: what to load (`spec`), loading it (`loading`), and where it keeps its parts (`anatomy`)."""

"""One file per family of data sets: a folder becomes image records."""

"""Images of a data set: records, readers, manifest, loading, sampling."""

"""Pure tensor algebra: components, groupings, merge methods, codecs, experts and their cost; no files, no network."""

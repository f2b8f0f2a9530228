"""The drawn data set: a labelled sample that needs no download."""

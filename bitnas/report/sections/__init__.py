"""One module per kind of section. A section is a function of the run that gives a title and HTML, or None if the folder
has nothing to do with it; what is merely missing is a sentence in its place.
"""

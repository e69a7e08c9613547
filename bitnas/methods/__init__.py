"""One folder per search method; each holds only what is its own."""

"""What `iterpref show` shows: pairs, focus, weights and trees, in a terminal or as a page."""

"""Ways to build comparisons beyond edges and cells: token spans, and several comparisons of one group."""

"""How many generators, scorers and learner ranks a run needs: measured rates, and a simulation of the flow.

`rates` reads what the parts of a run took, `simulation` plays the run with other numbers of them, `advice`
looks for the smallest fleet that keeps the learner busy. Nothing here starts anything.
"""

"""Learning from few labels: what unlabelled rows and models made for other tasks can add to them.

It must never know what a row is: rows have labels, weights and scores, nothing more.
"""

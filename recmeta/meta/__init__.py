"""The meta room: ways to learn shared weights over tasks, one algorithm a file, behind one interface.

It must never know recommendation: a task is a loss over rows, nothing more.
"""

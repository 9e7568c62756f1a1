"""The page's sections, one a file, each a function from what the night left to a `layout.Section`.

What is not there is said in a sentence, never a failure.
"""

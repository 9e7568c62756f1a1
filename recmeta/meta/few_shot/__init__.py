"""The few-shot room: classifiers that read a few labelled rows of classes never met before, and answer.

It must never know what the rows depict: an embedding is given to it.
"""

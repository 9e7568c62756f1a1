"""The transfer room: what known contexts say of a row of a new one, and the evidence of what that is worth.

It must never know a bundle, a server or a file format.
"""

"""recmeta: one shared user model, an adapter per surface, retrained every night."""

__version__ = "0.1.0"

"""The stages room: what each stage of a night does, as calls of the rooms below it.

It must never know Airflow or the command line, and holds no algorithm of its own.
"""

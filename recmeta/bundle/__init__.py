"""The bundle room: export to ONNX, the manifest, and publish, promote and roll back.

It must never decide what deserves to be promoted.
"""

"""What users do around KSampler, tried on tiny models in a real ComfyUI, and what is measured of each use.

A use is a change of one workflow, made by ComfyUI's own nodes where those take models this small. To add one, append a
`Use` to the module of its group.
"""

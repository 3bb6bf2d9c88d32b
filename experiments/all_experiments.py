"""All experiments, in the order of the report: the modules that have an `EXPERIMENT`."""

MODULES = ()
ALL = {module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES}
"""Name -> Experiment."""

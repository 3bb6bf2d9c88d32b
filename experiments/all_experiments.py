"""All experiments, in the order of the report: the modules that have an `EXPERIMENT`."""

from . import (
    dno_figure_2,
    dno_figure_3,
    dno_figure_4,
    dno_figure_5,
    dno_figure_7,
    dno_figure_8,
    dno_figure_12,
    dno_figure_13,
    dno_figure_14,
    dno_figure_16,
    dno_table_1,
    dno_theorem_1,
    real_network,
    zeno_black_box,
    zeno_deterministic,
    zeno_protein,
    zeno_scaling,
    zeno_terrain,
    zeno_tilted_law,
)

MODULES = (
    dno_figure_2,
    dno_figure_3,
    dno_figure_4,
    dno_figure_5,
    dno_figure_7,
    dno_figure_8,
    dno_figure_12,
    dno_figure_13,
    dno_figure_14,
    dno_figure_16,
    dno_table_1,
    dno_theorem_1,
    zeno_scaling,
    zeno_deterministic,
    zeno_black_box,
    zeno_tilted_law,
    zeno_protein,
    zeno_terrain,
    real_network,
)
ALL = {module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES}
"""Name -> Experiment."""

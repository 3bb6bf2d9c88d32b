"""All experiments, in the order of the report."""

from importlib import import_module

MODULES = (
    "dno_figure_2",
    "dno_figure_3",
    "dno_figure_4",
    "dno_figure_5",
    "dno_figure_7",
    "dno_figure_8",
    "dno_figure_12",
    "dno_figure_13",
    "dno_figure_14",
    "dno_figure_16",
    "dno_table_1",
    "dno_theorem_1",
    "zeno_scaling",
    "zeno_process",
    "zeno_deterministic",
    "zeno_black_box",
    "zeno_tilted_law",
    "zeno_protein",
    "zeno_terrain",
    "zeno_gan",
    "real_network",
)
"""Names of the modules, which are those of their experiments."""
ALL = {name: import_module(f".{name}", __package__).EXPERIMENT for name in MODULES}
"""Name -> Experiment."""

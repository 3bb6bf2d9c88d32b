"""The papers' experiments: each a question, its setting, what is claimed, and the figure that shows it.

    experiment    what an experiment is; `all_experiments` lists them all, `running` runs them
    dno_..        the DNO paper's figures and theorem, on the ring and on the embedded model
    ring          the paper's toy, points on a ring: Figures 2, 3 (left), 4, 12 and 13a; `ring_models` are its
                  denoisers, `ring_figures` its drawings
    tuned_models  the systems of Table 1 that tune the model

Only the `dno` command imports this room; the pack that ComfyUI installs leaves it out.
"""

"""The list of metrics, in the form that pyiqa 0.1.16 has it.

The names are our own, but for ssim, topiq_nr, and fid, which is of whole folders.
"""

DEFAULT_CONFIGS = {
    "mean": {"metric_mode": "NR", "score_range": "0, 1"},
    "error": {"metric_mode": "FR", "lower_better": True, "score_range": "0, ~1"},
    "rounded": {"metric_mode": "NR", "score_range": "0, 1"},
    "detached": {"metric_mode": "NR", "score_range": "0, 1"},
    "crops": {"metric_mode": "NR", "score_range": "0, 1"},
    "not_here": {"metric_mode": "NR", "score_range": "0, 1"},
    "not_here_later": {"metric_mode": "NR", "score_range": "0, 1"},
    "broken": {"metric_mode": "NR", "score_range": "0, 1"},
    "ssim": {"metric_mode": "FR", "score_range": "0, 1"},
    "topiq_nr": {"metric_mode": "NR", "score_range": "0, 1"},
    "fid": {"metric_mode": "NR", "lower_better": True, "score_range": "0, ~"},
}

"""Write the trained parts into the file that ships with the pack."""

from .. import weights
from .autoencoder import fold_norms


def export(vae, denoiser, scorer, path=weights.PATH):
    """Write the weights, in half precision.

    Args:
        vae: AutoencoderKL with whitened latents and softened norms; its norms are folded in place.
        denoiser: TextToLatent.
        scorer: ConsistencyScorer.
        path: of the file.
    """
    fold_norms(vae)
    text = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in denoiser.text.state_dict().items()}
    text = {key: value for key, value in text.items() if not key.endswith("position_ids")}
    parts = {"unet": denoiser.unet, "vae": vae, "scorer": scorer}
    weights.save({**{name: module.state_dict() for name, module in parts.items()}, "text": text}, path)

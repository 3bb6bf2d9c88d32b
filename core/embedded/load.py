"""The embedded model as a `SampleMap`, headless."""


def load_embedded(prompt, negative="", steps=20, cfg=3.0, eta=1.0, device="cpu", dtype=None, **settings):
    """Return the noise-to-sample map of the small text-to-image model that ships with the pack.

    Args:
        prompt: "<colour> <animal>", or a list of them, one a picture.
        negative: the negative prompt, shared by all pictures.
        steps: denoising steps, 1 .. 1000 ("trailing" DDIM timesteps).
        cfg: guidance scale; 3 suits the model.
        eta: in [0, 1].
        device, dtype: where and in what the network runs; noise and step arithmetic stay float32.
        settings: further attributes of `SampleMap`, e.g. keep_graphs=True.

    Returns:
        SampleMap of shape (B, 4, 16, 16), decoding to (B, 3, 128, 128).
    """
    raise NotImplementedError

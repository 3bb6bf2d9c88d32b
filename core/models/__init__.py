"""What turns a network into `denoise(x, sigma) -> denoised`: diffusers' pipelines, and the embedded model.

    denoiser            eps and v networks at training timesteps, seen in sigma space, and classifier-free guidance
    pipelines           a `SampleMap` of a diffusers pipeline; `pipeline_families` knows each family's own ways
    embedded            the small model that ships with the pack
    fingerprint         what tells one model's weights from another's
"""

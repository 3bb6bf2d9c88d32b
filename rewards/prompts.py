"""Which text each picture is judged by."""


def texts_for(reward, images, prompts):
    """Return the texts to score `images` with: the reward's own prompt for all, else one of `prompts` each.

    Raises:
        ValueError: there are none, or not one a picture.
    """
    texts = prompts if reward.prompt is None else [reward.prompt] * len(images)
    if texts is None:
        raise ValueError(f"{reward.name} needs a prompt to score pictures with; found none, so pass prompt=")
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts) or len(texts) != len(images):
        found = repr(texts) if isinstance(texts, str) else f"{len(texts)} prompts, {texts!r:.100}"
        raise ValueError(f"{reward.name} was given {found} for {len(images)} pictures; expected a list of one each")
    return list(texts)

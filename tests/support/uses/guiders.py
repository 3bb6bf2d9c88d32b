"""Uses of the guiders of SamplerCustomAdvanced."""

from .setting import Use, prompt, stock, unet


def guided(name, node, **inputs):
    """Return the use of one guider; inputs that are functions are asked for the setting's."""

    def change(setting):
        given = {key: value(setting) if callable(value) else value for key, value in inputs.items()}
        return setting.but(guider=stock(node, model=setting.model, **given))

    return Use(name, "Guiders", change)


def positive(setting):
    return setting.positive


def negative(setting):
    return setting.negative


GUIDERS = [
    guided("CFGGuider", "CFGGuider", positive=positive, negative=negative, cfg=3.0),
    guided("BasicGuider", "BasicGuider", conditioning=positive),
    *(
        guided(
            f"DualCFGGuider, {style}", "DualCFGGuider", cond1=positive, cond2=lambda _: prompt(14), negative=negative,
            cfg_conds=3.0, cfg_cond2_negative=2.0, style=style,
        )
        for style in ("regular", "nested")
    ),
    guided(
        "PerpNegGuider", "PerpNegGuider", positive=positive, negative=negative,
        empty_conditioning=lambda _: prompt(15), cfg=3.0,
    ),
    guided(
        "DualModelGuider", "DualModelGuider", positive=positive, negative=negative, cfg=3.0,
        model_negative=lambda _: unet(seed=3),
    ),
]  # fmt: skip

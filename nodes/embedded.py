"""The small text-to-image model that ships with the pack, to try everything without a download."""

from comfy_api.latest import io

from . import embedded_model, sockets


class DNOLoadEmbeddedModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOLoadEmbeddedModel",
            display_name="Load Embedded Model",
            category=sockets.CATEGORY,
            description=(
                "A small model that ships with the pack: 128 x 128 pictures of one animal in one colour, such as"
                " 'black cat'. A sampling run takes about a second on a CPU; cfg 3 suits it."
            ),
            inputs=[],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The denoising network, a small SD1.5."),
                io.Clip.Output("clip", display_name="clip", tooltip="The text encoder: '<colour> <animal>'."),
                io.Vae.Output("vae", display_name="vae", tooltip="The autoencoder, 8 pixels a latent entry."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(embedded_model.load_model(), embedded_model.load_clip(), embedded_model.load_vae())

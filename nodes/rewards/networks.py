"""Nodes of the rewards that are networks: each reads a file of the user's and gives one DNO_REWARD."""

from comfy_api.latest import io

from ... import rewards
from ...rewards import weights
from ...rewards.dinov2 import WAYS
from .. import requirements, sockets
from . import files
from .pictures import pictures_of


class FileReward(io.ComfyNode):
    """What these nodes have in common: where `file` or a package is missing, it is refused before anything runs.

    Attributes:
        source: of `weights.SOURCES`, what the input `file` is as a rule.
        packages: that the networks or the tokenizer need, as `requirements.met` takes them.
    """

    source: str
    packages = ("transformers",)

    @classmethod
    def validate_inputs(cls, file=None):
        installed = requirements.met(*cls.packages)
        return installed if installed is not True else cls.found(file, cls.source)

    @staticmethod
    def found(file, source, look_for=files.path_of):
        """Return True where there is such a file, or it comes by a link and is known later; else what to tell."""
        try:
            if file is not None:
                look_for(file, source)
        except FileNotFoundError as error:
            return str(error)
        return True

    @classmethod
    def schema_with_file(cls, node_id, display_name, description, *inputs, optional=()):
        """Return the schema of a node with these inputs after its file, and the settings of a network after them."""
        file = file_input("file", cls.source)
        return io.Schema(
            node_id=node_id, display_name=display_name, category=sockets.REWARDS, description=description,
            **sockets.aliases("reward", "score", "human preference", "aesthetic"),
            inputs=[file, *inputs, *settings_of_a_network(), *optional],
            outputs=[sockets.Reward.Output("reward", display_name="reward", tooltip="For the DNO Sampler.")],
        )  # fmt: skip

    @classmethod
    def tower(cls, file, dtype):
        return files.tower(file, cls.source, dtype)


OF_CLIPS_TEXTS = ("transformers", "open_clip_torch")


class PromptReward(FileReward):
    """A node whose reward compares the picture with a prompt.

    Attributes:
        reward_class: of `rewards`.
        title, about: the node's display name and description.
    """

    reward_class: type
    title: str
    about: str

    @classmethod
    def define_schema(cls):
        prompt = io.String.Input(
            "prompt", multiline=True, tooltip="What the picture is judged by, as a rule the positive prompt's text."
        )
        return cls.schema_with_file(cls.__name__, cls.title, cls.about, prompt)

    @classmethod
    def execute(cls, file, prompt, dtype, crops) -> io.NodeOutput:
        if not prompt.strip():
            raise ValueError(
                "the prompt is empty; expected the text to judge pictures by, as a rule the positive prompt's"
            )
        return of_crops(cls.reward_class(cls.tower(file, dtype), prompt), crops)


class DNOHPSReward(PromptReward):
    source, reward_class, title = "HPS", rewards.HPS, "HPS Reward"
    packages = OF_CLIPS_TEXTS
    about = (
        "Human Preference Score v2 or v2.1, as the file is: how much people like the picture for the prompt, about 0.24"
        " to 0.29."
    )


class DNOPickScoreReward(PromptReward):
    source, reward_class, title = "PickScore", rewards.PickScore, "PickScore Reward"
    packages = OF_CLIPS_TEXTS
    about = "PickScore: how likely people pick the picture for the prompt, about 17 to 24."


class DNOMPSReward(PromptReward):
    source, reward_class, title = "MPS", rewards.MPS, "MPS Reward"
    packages = OF_CLIPS_TEXTS
    about = (
        "MPS, the Multi-dimensional Preference Score: how much people like the picture for the prompt, by what its"
        " places show of it, about 5 to 15."
    )


class DNOCLIPScoreReward(PromptReward):
    source, reward_class, title = "CLIP ViT-L/14", rewards.CLIPScore, "CLIPScore Reward"
    packages = OF_CLIPS_TEXTS
    about = "CLIPScore: how well the picture shows the prompt, by any CLIP with both towers, about 0.2 to 0.4."


class VocabularyReward(PromptReward):
    """A node whose network reads the prompt with a vocabulary, which is a file too."""

    @classmethod
    def validate_inputs(cls, file=None):
        found = super().validate_inputs(file)
        return cls.found(file, cls.source, files.vocabulary_of) if found is True else found


class DNOImageReward(VocabularyReward):
    source, reward_class, title = "ImageReward", rewards.ImageReward, "ImageReward"
    about = (
        "ImageReward: how well the picture shows the prompt and how good it looks, about -2 to 2. Put"
        " bert-base-uncased's vocab.txt beside the file."
    )


class DNOCycleReward(VocabularyReward):
    source, reward_class, title = "CycleReward", rewards.CycleReward, "CycleReward"
    about = (
        "CycleReward: how well picture and prompt can each be had back from the other; it reads long prompts, of 126"
        " tokens. Put bert-base-uncased's vocab.txt beside the file."
    )


class DNOAestheticReward(FileReward):
    source = "Aesthetic"
    clip_source = "CLIP ViT-L/14"

    @classmethod
    def define_schema(cls):
        return cls.schema_with_file(
            "DNOAestheticReward", "Aesthetic Reward",
            "LAION's improved aesthetic predictor: how beautiful people find the picture, about 4.5 to 7 of 10. It"
            " judges what OpenAI's CLIP ViT-L/14 sees.",
            file_input("clip_file", cls.clip_source),
            optional=[
                io.ClipVision.Input(
                    "clip_vision", optional=True,
                    tooltip="A CLIP ViT-L/14 of Load CLIP Vision, to use instead of clip_file.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file=None, clip_file=None, clip_vision=False):
        # ComfyUI gives None for an input that comes by a link, and nothing for one that is not connected. Naming
        # clip_file keeps it from refusing one that is missing: with a clip_vision it is not needed.
        found = super().validate_inputs(file)
        return cls.found(clip_file, cls.clip_source) if found is True and clip_vision is False else found

    @classmethod
    def execute(cls, file, clip_file, dtype, crops, clip_vision=None) -> io.NodeOutput:
        if clip_vision is None:
            tower = files.tower(clip_file, cls.clip_source, dtype)
        else:
            tower = files.clip_vision_tower(clip_vision, dtype)
        return of_crops(rewards.Aesthetic(tower, files.path_of(file, cls.source)), crops)


class DNOImageSimilarityReward(FileReward):
    source = "CLIP ViT-L/14"

    @classmethod
    def define_schema(cls):
        return cls.schema_with_file(
            "DNOImageSimilarityReward", "Image Similarity Reward",
            "How like a reference the picture is in what a CLIP sees: content and style, not place and pixel. About"
            " 0.4 to 1.",
            io.Image.Input("reference", tooltip="What the pictures shall be like; of several, the mean counts."),
        )  # fmt: skip

    @classmethod
    def execute(cls, file, reference, dtype, crops) -> io.NodeOutput:
        tower = cls.tower(file, dtype)
        return of_crops(rewards.Similarity(tower, pictures_of(reference, "the reference's pictures")), crops)


class DNODINOv2SimilarityReward(FileReward):
    source = "DINOv2"

    @classmethod
    def define_schema(cls):
        return cls.schema_with_file(
            "DNODINOv2SimilarityReward", "DINOv2 Similarity Reward",
            "How like a reference the picture is in what a DINOv2 sees, which knows pictures alone: the very same dog,"
            " not any dog. About 0.2 to 1.",
            io.Image.Input("reference", tooltip="What the pictures shall be like; of several, the mean counts."),
            io.Combo.Input(
                "by", options=list(WAYS), default="subject",
                tooltip="subject: what the picture shows, wherever it stands; places: what each of 16 x 16 places"
                " shows, so layout counts too.",
            ),
        )  # fmt: skip

    @classmethod
    def execute(cls, file, reference, by, dtype, crops) -> io.NodeOutput:
        pictures = pictures_of(reference, "the reference's pictures")
        return of_crops(rewards.DINOv2Similarity(cls.tower(file, dtype), pictures, by=by), crops)


class DNOLPIPSReward(FileReward):
    source = "LPIPS"
    packages = ()

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOLPIPSReward", display_name="LPIPS Reward", category=sockets.REWARDS,
            description="How like a reference the picture looks to people, place by place: minus the LPIPS distance, 0"
            " the same picture, -0.7 another one. By the convolutions of AlexNet, VGG16 or SqueezeNet.",
            **sockets.aliases("reward", "lpips", "perceptual", "similarity", "reference", "likeness"),
            inputs=[
                file_input("file", cls.source),
                io.Image.Input(
                    "reference", tooltip="What the pictures shall look like, resized to them; of several, the mean"
                    " counts.",
                ),
            ],
            outputs=[sockets.Reward.Output("reward", display_name="reward", tooltip="For the DNO Sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, file, reference) -> io.NodeOutput:
        tower = cls.tower(file, "float32")
        return io.NodeOutput(rewards.LPIPS(tower, pictures_of(reference, "the reference's pictures")))


class DNOFaceReward(FileReward):
    source = "Face"
    detector_source = "MTCNN"
    packages = ()

    @classmethod
    def define_schema(cls):
        return cls.schema_with_file(
            "DNOFaceReward", "Face Reward",
            "Whether the picture's largest face is the same person's as in a reference, by a FaceNet or an ArcFace."
            " About 0.5 to 1 the same, -0.2 to 0.5 another; -1 where there is no face.",
            io.Image.Input(
                "reference",
                tooltip="A picture of the person, from the front, whose largest face counts; of several, the mean.",
            ),
            file_input("detector_file", cls.detector_source),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file=None, detector_file=None):
        found = super().validate_inputs(file)
        return cls.found(detector_file, cls.detector_source, files.detector_of) if found is True else found

    @classmethod
    def execute(cls, file, reference, detector_file, dtype, crops) -> io.NodeOutput:
        pictures = pictures_of(reference, "the reference's pictures")
        detector = files.tower(detector_file, cls.detector_source, "float32")
        return of_crops(rewards.FaceSimilarity(cls.tower(file, dtype), detector, pictures), crops)


class DNOAestheticV25Reward(FileReward):
    source = "Aesthetic V2.5"
    siglip_source = "SigLIP"

    @classmethod
    def define_schema(cls):
        return cls.schema_with_file(
            "DNOAestheticV25Reward", "Aesthetic V2.5 Reward",
            "Aesthetic Predictor V2.5: how beautiful people find the picture, drawings too, about 1 to 10; 5.5 and more"
            " is said to be great. It judges what Google's SigLIP so400m sees.",
            file_input("siglip_file", cls.siglip_source),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file=None, siglip_file=None):
        found = super().validate_inputs(file)
        return cls.found(siglip_file, cls.siglip_source) if found is True else found

    @classmethod
    def execute(cls, file, siglip_file, dtype, crops) -> io.NodeOutput:
        tower = files.tower(siglip_file, cls.siglip_source, dtype)
        return of_crops(rewards.AestheticV25(tower, files.path_of(file, cls.source)), crops)


class DNODirectionReward(FileReward):
    source = "CLIP ViT-L/14"
    packages = OF_CLIPS_TEXTS

    @classmethod
    def define_schema(cls):
        return cls.schema_with_file(
            "DNODirectionReward", "Direction Reward",
            "More like one text, less like another, by any CLIP with both towers: 'a sunny day' against 'rain'. About"
            " -0.1 to 0.1.",
            io.String.Input("more", multiline=True, tooltip="What the picture shall become more like; may be empty."),
            io.String.Input("less", multiline=True, tooltip="What it shall become less like; may be empty."),
        )  # fmt: skip

    @classmethod
    def execute(cls, file, more, less, dtype, crops) -> io.NodeOutput:
        return of_crops(rewards.Directions(cls.tower(file, dtype), more, less), crops)


def file_input(name, source):
    usual, page = weights.SOURCES[source]
    return io.Combo.Input(
        name, options=files.names(source),
        tooltip=f"Of models/reward_models, aesthetic or clip_vision; for {source}: {usual} from {page}.",
    )  # fmt: skip


def settings_of_a_network():
    """Return the inputs that all these nodes have after their own."""
    return [
        io.Combo.Input(
            "dtype", options=list(files.DTYPES), default="float32",
            tooltip="Of the network's weights: bfloat16 and float16 take half the memory and are less exact; scores and"
            " the gradient by the picture are float32.",
        ),
        crops_input(),
    ]  # fmt: skip


def crops_input():
    return io.Int.Input(
        "crops", default=0, min=0, max=16,
        tooltip="Judge by the mean over so many random crops, always the same ones, which is harder to fool; each"
        " takes as long as a picture. 0 judges the whole picture.",
    )  # fmt: skip


def of_crops(reward, crops):
    """Return a node's output: the reward of the whole picture, or its mean over crops."""
    return io.NodeOutput(rewards.Jittered(reward, crops) if crops else reward)

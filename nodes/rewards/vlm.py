"""The node of vision-language models: the folder that holds one, and what it is asked about the picture."""

from comfy_api.latest import io

from ... import rewards
from ...rewards.vlm_judge import PROMPT, QUESTION, SCALES
from .. import page, requirements, sockets
from . import files


class DNOVLMJudgeReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOVLMJudgeReward",
            display_name="VLM Judge Reward",
            category=sockets.REWARDS,
            description=(
                "Ask a vision-language model (Qwen2-VL, LLaVA, SmolVLM, Gemma 3 ..) about the picture: how sure it is"
                " of yes. Of HPSv3 it takes the score itself. It has no gradient: use DNO Solver (ZeNO), (Search) or"
                " (Zeroth-Order)."
            ),
            **sockets.aliases("reward", "score", "vlm", "vqascore", "hpsv3", "qwen", "llava", "question"),
            inputs=[
                io.Combo.Input(
                    "folder", options=list(files.model_folders()) or [files.NO_FOLDER],
                    tooltip="A folder with a whole model as on the hub: config.json, tokenizer, processor, safetensors."
                    " Of models/reward_models or LLM; such as Qwen2-VL-2B-Instruct from huggingface.co/Qwen.",
                ),
                io.String.Input(
                    "question", default=QUESTION, multiline=True,
                    tooltip="To answer with yes or no; prompt in braces stands for the prompt. HPSv3 has its own.",
                ),
                io.String.Input(
                    "prompt", multiline=True,
                    tooltip="What the picture shall show, as a rule the positive prompt's text.",
                ),
                io.Combo.Input(
                    "scale", options=list(SCALES), default=SCALES[0],
                    tooltip="log-odds: log(P(yes) / P(no)), which still differs where the model is sure. probability:"
                    " P(yes) / (P(yes) + P(no)), from 0 to 1.",
                ),
            ],
            outputs=[
                sockets.Reward.Output(
                    "reward", display_name="reward", tooltip="For the DNO Sampler, with a solver without gradients."
                )
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, folder=None):
        installed = requirements.met("transformers")
        if installed is not True or folder is None:  # else it comes by a link, and is known when the node runs
            return installed
        try:
            files.folder_of(folder)
        except FileNotFoundError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, folder, question, prompt, scale) -> io.NodeOutput:
        tower = files.folder_tower(folder)
        if not prompt.strip() and (tower.rates or PROMPT in question):
            raise ValueError(
                "the prompt is empty; expected what the picture shall show, or a question without {prompt}"
            )
        if tower.rates:
            said = "HPSv3's own head judges: question and scale do not count"
            return io.NodeOutput(rewards.HPSv3(tower, prompt), ui=page.shown(said))
        return io.NodeOutput(rewards.VLMJudge(tower, question, prompt, scale))

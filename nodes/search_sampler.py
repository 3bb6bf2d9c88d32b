"""DNO Search (Sampler): a search as a SAMPLER, so that any node that takes one runs a search in its sampling."""

from dataclasses import replace

from comfy_api.latest import io

from . import page, sockets
from .sampler import (
    check_fit,
    gain,
    limits_of_a_search,
    optimization,
    optional_of_a_search,
    remarks,
    required_of_a_search,
    sampler_of_a_search,
)
from .search import OptimizedSampler


class DNOSearchSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSearchSampler",
            display_name="DNO Search (Sampler)",
            category=sockets.CATEGORY,
            description=(
                "A search as a sampler: connect it where a node takes one, as SamplerCustomAdvanced, detailers and"
                " upscalers of other packs do. Each time that node samples, it searches the noise for a picture that"
                " the reward likes more."
            ),
            inputs=[
                *required_of_a_search(), *optional_of_a_search(), sampler_of_a_search(), *limits_of_a_search(),
            ],
            outputs=[
                io.Sampler.Output("search", display_name="search", tooltip="For SamplerCustomAdvanced and others."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, vae, reward, eta, iterations, start_noise=None, **search) -> io.NodeOutput:
        options = optimization(reward, eta, iterations, start_noise, None, {}, **search)
        return io.NodeOutput(SearchSampler(vae, options))


class SearchSampler(OptimizedSampler):
    """ComfyUI's SAMPLER that searches in a node of any pack: what a DNO Sampler checks and tells, it does itself."""

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        check_fit(model_wrap.model_patcher, self.vae, noise)
        # A copy: one SAMPLER may serve several nodes, and ComfyUI keeps it, so nothing of a search may stay on it.
        search = OptimizedSampler(self.vae, replace(self.optimization, settings=self._settings(model_wrap, extra_args)))
        latent = search.sample(model_wrap, sigmas, extra_args, None, noise, latent_image, denoise_mask, disable_pbar)
        result = search.result
        if callback is not None:  # by which SamplerCustomAdvanced gets its denoised_output
            steps = len(sigmas) - 1
            callback(steps - 1, result.latent, latent, steps)
        page.show("\n".join([gain(result.history), remarks(result.history)]))
        return latent

    def _settings(self, model_wrap, extra_args):
        """Return what is recorded of the run, as the DNO Sampler nodes record it."""
        cfg = getattr(model_wrap, "cfg", None)
        settings = {} if cfg is None else {"cfg": cfg}
        return settings if self.optimization.start is not None else {"seed": extra_args.get("seed") or 0, **settings}

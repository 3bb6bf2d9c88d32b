"""A solver that looks around from inside a run instead of optimising, and a node for the process's global flags."""

import sys

import comfy.model_management as mm
import torch


def pointers(model):
    return [parameter.data_ptr() for parameter in model.model.parameters()]


def flags():
    return {
        "grad": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled(),
        "in_training": getattr(mm, "in_training", None), "anomaly": torch.is_anomaly_enabled(),
        "kernels": getattr(getattr(sys.modules.get("comfy_kitchen"), "apply_rope", None), "__module__", None),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "autocast": torch.is_autocast_enabled(),
        "dtype": str(torch.get_default_dtype()), "threads": torch.get_num_threads(),
    }  # fmt: skip


class Witness:
    """A solver that keeps the noise and takes notes."""

    def __init__(self, model, checks, differentiates, guesses):
        self.model, self.checks, self.notes, self.before = model, checks, {}, pointers(model)
        self.differentiates, self.guesses = differentiates, lambda calls: guesses
        self.samples = 5  # what the node takes for the number of candidates in an iteration
        self.loads, self.load_models = [], mm.load_models_gpu
        if "asked" in checks:
            mm.load_models_gpu = self._load
            # What earlier searches on this server have counted of networks of the same classes.
            (sizes,) = (module for name, module in list(sys.modules.items()) if name.endswith(".nodes.graph_sizes"))
            sizes._counted.clear()

    def fresh(self):
        return self

    def step(self, problem, noise):
        for check in self.checks:
            getattr(self, check)(problem, noise)
        return noise, problem.evaluate(noise)

    def gradient(self, problem, noise):
        """The gradient against a central difference along itself, where rounding weighs least: (B,) relative errors."""
        # Scores then differ by 2 * rise: above float32 rounding, below what bends the slope.
        self.notes["gradient_error"] = (self._slope(problem, noise, rise=2e-5) - 1).abs().tolist()

    def extrapolated_gradient(self, problem, noise):
        """The same by larger differences, whose rounding weighs 1e-4 where it weighed 1e-3, without what bends them."""
        near, far = (self._slope(problem, noise, rise) for rise in (1e-4, 2e-4))
        self.notes["gradient_error"] = ((4 * near - far) / 3 - 1).abs().tolist()

    def _slope(self, problem, noise, rise):
        """The slope of the scores along the gradient by central differences, in units of the gradient's own: (B,)."""
        _, gradient = problem.gradient(noise)
        flat = gradient.flat()
        norm = flat.norm(dim=1)
        direction = (rise / norm.square())[:, None] * flat
        high, low = (problem.evaluate(noise.with_flat(noise.flat() + end * direction)).scores for end in (1, -1))
        return (high - low) / (2 * rise)

    def cosine(self, problem, noise):
        """The gradient's cosine with the true one, as central differences along random directions tell it."""
        _, gradient = problem.gradient(noise)
        generator = torch.Generator().manual_seed(0)
        slopes, step = [], 1e-2
        for _ in range(8):
            direction = torch.randn(noise.flat().shape, generator=generator)
            high, low = (problem.evaluate(noise.with_flat(noise.flat() + end * direction)) for end in (step, -step))
            difference = (high.scores - low.scores).sum() / (2 * step)
            slopes.append(torch.stack([difference, (gradient.flat() * direction).sum()]))
        self.notes["cosine"] = torch.cosine_similarity(*torch.stack(slopes).double().unbind(1), dim=0).item()

    def unguided(self, problem, noise):
        """What guidance is made of: of cfg 3 the relative difference of the two, and from the guider's own estimate."""
        sample_map = problem.sample_map
        with torch.no_grad():
            x = sample_map.start(noise.initial)
            sigma = x.new_full((len(x),), sample_map.schedule.sigmas[0])
            cond, uncond = sample_map.unguided(x, sigma)
            guided = sample_map.denoise(x, sigma)
        self.notes["unguided"] = {
            "differ": ((cond - uncond).norm() / guided.norm()).item(),
            "error": ((uncond + 3 * (cond - uncond) - guided).norm() / guided.norm()).item(),
        }

    def storage(self, problem, noise):
        parameters = list(self.model.model.parameters())
        self.notes["same_storage"] = pointers(self.model) == self.before
        self.notes["inference_weights"] = sum(parameter.is_inference() for parameter in parameters)
        self.notes["trainable_weights"] = sum(parameter.requires_grad for parameter in parameters)

    def cast_weights(self, problem, noise):
        """The shapes of the weights that one step's graph holds and that are not the model's own tensors."""
        weights = [weight for weight in self.model.model.parameters() if weight.ndim == 2]
        shapes = {shape for weight in weights for shape in (tuple(weight.shape), tuple(weight.T.shape))}
        stored, found = {weight.data_ptr() for weight in weights}, []

        def look(tensor):
            if tuple(tensor.shape) in shapes and tensor.data_ptr() not in stored:
                found.append(list(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
            problem.sample_map.denoise_with_graph(problem.sample_map.start(noise.initial), 0)
        self.notes["cast_weights"] = found

    def flags(self, problem, noise):
        self.notes["flags"] = flags()

    def rows(self, problem, noise):
        """Most pictures of one call."""
        self.notes["rows"] = problem.sample_map.most_rows

    def _load(self, patchers, memory_required=0, **how):
        self.loads.append(memory_required)
        return self.load_models(patchers, memory_required=memory_required, **how)

    def asked(self, problem, noise):
        """The most memory beside weights that ComfyUI was asked for since this witness was made."""
        mm.load_models_gpu = self.load_models
        self.notes["asked"] = max(self.loads)

    def random(self, problem, noise):
        """The state of the global generator before and after a sampling run."""
        states = [torch.get_rng_state()]
        problem.sample_map.latent(noise)
        states.append(torch.get_rng_state())
        self.notes["random"] = [state.tolist() for state in states]

    def candidates(self, problem, noise):
        """Two candidates flattened into one batch against each alone: rows are (q, B), candidate-major."""
        other = noise.map(lambda tensor: -tensor)
        both = type(noise)(
            torch.cat([noise.initial, other.initial]), torch.cat([noise.injected, other.injected], dim=1)
        )
        apart = torch.cat([problem.sample_map.latent(each) for each in (noise, other)])
        together = problem.sample_map.latent(both)
        self.notes["candidates_error"] = ((together - apart).abs().max() / apart.abs().max()).item()


class DNOTestWitness:
    @classmethod
    def INPUT_TYPES(cls):
        optional = {"differentiates": ("BOOLEAN", {"default": True}), "guesses": ("INT", {"default": 0})}
        return {"required": {"model": ("MODEL",), "checks": ("STRING", {})}, "optional": optional}

    RETURN_TYPES = ("DNO_SOLVER",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, model, checks, differentiates=True, guesses=0):
        return (Witness(model, checks.split(), differentiates, guesses),)


class DNOTestNotes:
    """What a witness noted; `after` is any output of the sampler, so that this runs when it is done."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"witness": ("DNO_SOLVER",), "after": ("LATENT",)}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "tell"
    CATEGORY = "tests"

    def tell(self, witness, after):
        return {"ui": {"notes": [witness.notes]}}


class DNOTestFlags:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"nonce": ("STRING", {})}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "tell"
    CATEGORY = "tests"

    def tell(self, nonce):
        return {"ui": {"flags": [flags()]}}


class DNOTestHistory:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"history": ("DNO_HISTORY",)}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "tell"
    CATEGORY = "tests"

    def tell(self, history):
        keys = ("rows", "best", "best_row", "stopped", "settings")
        return {"ui": {"history": [{key: getattr(history, key) for key in keys}]}}


NODES = (DNOTestWitness, DNOTestNotes, DNOTestFlags, DNOTestHistory)
